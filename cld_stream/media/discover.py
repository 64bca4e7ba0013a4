"""From what a user names to the files and sequences that may be read.

Folders are walked in natural path order; links are followed, each folder once, real folders first. Hidden entries
and what `.cldignore` names are left out. A frame folder is one sequence: see `numbered`.
"""

import os
import re
import stat
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from cld_stream.errors import UsageError
from cld_stream.media.address import refuse_address
from cld_stream.media.ignore import IgnoreRules
from cld_stream.media.job import Member
from cld_stream.media.numbered import numbered_sequence
from cld_stream.media.paths import absolute
from cld_stream.media.tables import read_list, read_table, split_filter

__all__ = ["Discovery", "Item", "discover", "discover_folder", "is_store", "natural_key"]


@dataclass(frozen=True, slots=True)
class Item:
    """A file, or pictures in order.

    Attributes:
        path: absolute; of a table's sequence `TABLE#SEQUENCE`.
        members: of a sequence, its pictures with their times.
        listed: from a table, whose order is kept whatever the capture times.
        label, split: as a table gives them.
        growing: more is being written to the file.
    """

    kind: Literal["file", "sequence"]
    path: Path
    members: tuple[Member, ...] = ()
    listed: bool = False
    label: str | None = None
    split: str | None = None
    growing: bool = False


@dataclass
class Discovery:
    """What was found.

    Attributes:
        items: every file and sequence once, in natural path order within each input.
        skipped: (path, reason) of what cannot be a source.
        folders: the input folders that were walked.
    """

    items: list[Item] = field(default_factory=list)
    skipped: list[tuple[Path, str]] = field(default_factory=list)
    folders: list[Path] = field(default_factory=list)


def discover(inputs: Sequence[str], sequence_fps: float = 25.0) -> Discovery:
    """Find the sources in files, folders, `@list.txt` and `@table.tsv[?column=value]`.

    Args:
        inputs: as on the command line. A file that is named is taken even if hidden or ignored.
        sequence_fps: frames per second that frame numbers of sequences stand for.

    Raises:
        UsageError: an input does not exist, or a list cannot be read.
    """
    found = _Walk(sequence_fps)
    for text in inputs:
        found.add(text)
    return found.result


def discover_folder(folder: Path, rules: IgnoreRules, sequence_fps: float) -> list[Item]:
    """The sources that lie in a folder itself, under the `.cldignore` rules that hold in it; none if it is gone."""
    walk = _Walk(sequence_fps)
    inside = walk._read_folder(folder, rules)
    if inside is not None:
        _, subfolders, files = inside
        walk._add_files(folder, files, leaf=not subfolders)
    return walk.result.items


class _Walk:
    def __init__(self, sequence_fps: float) -> None:
        self.result = Discovery()
        self._fps = sequence_fps
        self._seen: set[Path] = set()
        self._folders: set[tuple[int, int]] = set()

    def add(self, text: str, listed_in: Path | None = None) -> None:
        if listed_in is None and text.startswith("@") and not Path(text).exists():
            self._add_list(text[1:])
            return
        if not text:
            raise UsageError("an empty path was given; perhaps a variable is not set. Name a folder or a file.")
        path = absolute(text)
        try:
            mode = path.stat().st_mode
        except (OSError, ValueError) as error:
            if listed_in is not None:
                self.result.skipped.append((path, "named in a list, but does not exist"))
                return
            refuse_address(text)
            why = getattr(error, "strerror", None) or error
            raise UsageError(
                f"{text}: no such file or folder ({why}). Check the path; if it is on a drive, attach the drive."
            ) from None
        if stat.S_ISDIR(mode):
            self.result.folders.append(path)
            self._walk(path, IgnoreRules())
        else:
            self._add_file(path, mode)

    def _add_list(self, text: str) -> None:
        path, where = split_filter(text)
        path = absolute(path)
        if path.suffix.lower() != ".tsv":
            if where:
                raise UsageError(f"@{text}: only a .tsv table can be filtered with `?`.")
            for entry in read_list(path):
                self.add(entry, listed_in=path)
            return
        for one in read_table(path, where, self._fps):
            name = Path(f"{path}#{one.name}")
            self._add_item(Item("sequence", name, one.members, True, one.label, one.split))

    def _walk(self, top: Path, rules: IgnoreRules) -> None:
        pending = [(top, rules)]
        links: list[tuple[Path, IgnoreRules]] = []
        while pending or links:
            folder, rules = pending.pop() if pending else links.pop(0)
            inside = self._read_folder(folder, rules)
            if inside is None:
                continue
            rules, subfolders, files = inside
            real = [(p, rules) for p in subfolders if not p.is_symlink()]
            links += [(p, rules) for p in subfolders if p.is_symlink()]
            pending += reversed(real)
            self._add_files(folder, files, leaf=not subfolders)

    def _read_folder(
        self, folder: Path, rules: IgnoreRules
    ) -> tuple[IgnoreRules, list[Path], list[tuple[Path, int]]] | None:
        """Its rules, subfolders, and (file, mode)s; None if it was read before or cannot be."""
        try:
            status = folder.stat()
            if (status.st_dev, status.st_ino) in self._folders:
                return None
            self._folders.add((status.st_dev, status.st_ino))
            if is_store(folder):
                self.result.skipped.append((folder, "a frame store of cld-stream; what is in it is no footage"))
                return None
            rules = rules.entered(folder)
            names = sorted((n for n in os.listdir(folder) if not n.startswith(".")), key=natural_key)  # noqa: PTH208 - Path.iterdir is slower
        except OSError as error:
            self.result.skipped.append((folder, f"cannot be read: {error.strerror}"))
            return None
        subfolders, files = [], []
        for name in names:
            path = folder / name
            try:
                mode = path.stat().st_mode
            except OSError as error:
                self.result.skipped.append((path, _link_reason(path, error)))
                continue
            is_dir = stat.S_ISDIR(mode)
            if rules.ignores(path, is_dir=is_dir):
                continue
            if is_dir:
                subfolders.append(path)
            else:
                files.append((path, mode))
        return rules, subfolders, files

    def _add_files(self, folder: Path, files: list[tuple[Path, int]], *, leaf: bool) -> None:
        regular = [path for path, mode in files if stat.S_ISREG(mode)]
        members = numbered_sequence(regular, self._fps) if leaf else ()
        if members:
            self._add_item(Item("sequence", folder, members))
        taken = {m.path for m in members}
        for path, mode in files:
            if path not in taken:
                self._add_file(path, mode)

    def _add_file(self, path: Path, mode: int) -> None:
        if stat.S_ISREG(mode):
            self._add_item(Item("file", path))
        else:
            self.result.skipped.append((path, "a pipe, socket or device: not a file that can be read again"))

    def _add_item(self, item: Item) -> None:
        if item.path not in self._seen:
            self._seen.add(item.path)
            self.result.items.append(item)


def natural_key(path: str | Path) -> tuple[tuple[int, int, str], ...]:
    """Orders `clip9` before `clip10`, folder by folder; the same everywhere, whatever the locale."""
    return tuple(_natural_parts(str(path)))


def _natural_parts(text: str) -> Iterator[tuple[int, int, str]]:
    for part in re.split(r"(\d+|/)", text):
        if part == "/":
            yield (0, 0, "")
        elif part.isascii() and part.isdigit():
            yield (1, int(part), part)
        elif part:
            yield (2, 0, part)


def is_store(folder: Path) -> bool:
    """A store among the footage: `ingest .` where it was made."""
    header = folder / "store.json"
    if not header.is_file():
        return False
    with header.open("rb") as file:  # a stranger's may be endless
        return b'"cld-stream.store"' in file.read(4096)


def _link_reason(path: Path, error: OSError) -> str:
    return "a link that leads nowhere" if path.is_symlink() else f"cannot be read: {error.strerror}"
