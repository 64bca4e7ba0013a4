"""A look at everything below a folder that costs little when nothing has changed: one `stat` a file, no list kept."""

import os
import stat
import time
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from cld_stream.media.discover import is_store
from cld_stream.media.ignore import IgnoreRules

__all__ = ["Known", "Scan", "Seen", "rules_above", "sign_of"]

Known = Mapping[str, Mapping[str, int]]  # folder -> name -> sign


def sign_of(device: int, inode: int, size: int, mtime_ns: int) -> int:
    """A number that changes whenever one of these does."""
    return hash((device, inode, size, mtime_ns))


def rules_above(top: str, folder: str) -> IgnoreRules:
    """What the `.cldignore` files from `top` down to the parent of `folder` say.

    Raises:
        OSError: one is too large.
    """
    rules, at = IgnoreRules(), Path(top)
    for part in Path(folder).relative_to(top).parts:
        rules = rules.entered(at)
        at /= part
    return rules


@dataclass(frozen=True, slots=True)
class Seen:
    """A folder in which something is not as known: signs of changed files, names of known ones that are gone."""

    folder: str
    changed: dict[str, int]
    gone: tuple[str, ...]


@dataclass
class Scan:
    """Iterate over it to look; afterwards the attributes say how it went.

    Attributes:
        top: what to look at, with everything below it but the folder `skipped`, and stores.
        known: what need not be told.
        files: met.
        devices: device number of every folder that could be read.
        unread: why others could not.
        ruled: folders in which a `.cldignore` counts.
        cpu_s: CPU time of the look.
    """

    top: str
    known: Known
    skipped: str = ""
    files: int = 0
    devices: dict[str, int] = field(default_factory=dict)
    unread: dict[str, str] = field(default_factory=dict)
    ruled: set[str] = field(default_factory=set)
    cpu_s: float = 0.0

    def __iter__(self) -> Iterator[Seen]:
        began = time.thread_time()
        try:
            status = os.stat(self.top)  # noqa: PTH116
        except OSError as error:
            self.unread[self.top] = error.strerror or str(error)
            return
        met: set[tuple[int, int]] = set()
        with suppress(OSError):
            left_out = os.stat(self.skipped)  # noqa: PTH116
            met.add((left_out.st_dev, left_out.st_ino))
        pending = [(self.top, status, IgnoreRules())]
        links: list[tuple[str, os.stat_result, IgnoreRules]] = []
        while pending or links:
            folder, status, rules = pending.pop() if pending else links.pop(0)
            if (status.st_dev, status.st_ino) in met:
                continue
            met.add((status.st_dev, status.st_ino))
            try:
                if is_store(Path(folder)):
                    continue
                seen = self._look(folder, rules, pending, links)
            except OSError as error:
                self.unread[folder] = error.strerror or str(error)
                continue
            self.devices[folder] = status.st_dev
            if seen is not None:
                yield seen
        self.cpu_s = time.thread_time() - began

    def _look(
        self,
        folder: str,
        rules: IgnoreRules,
        pending: list[tuple[str, os.stat_result, IgnoreRules]],
        links: list[tuple[str, os.stat_result, IgnoreRules]],
    ) -> Seen | None:
        rules = rules.entered(Path(folder))
        ruled = bool(rules.layers)
        if ruled:
            self.ruled.add(folder)
        known = self.known.get(folder, {})
        changed: dict[str, int] = {}
        met = 0
        with os.scandir(folder) as entries:
            for entry in entries:
                name = entry.name
                if name[0] == ".":
                    continue
                try:
                    status = entry.stat()
                except OSError:  # a link that leads nowhere, or just gone
                    continue
                is_dir = stat.S_ISDIR(status.st_mode)
                if ruled and rules.ignores(Path(entry.path), is_dir=is_dir):
                    continue
                if is_dir:
                    (links if entry.is_symlink() else pending).append((entry.path, status, rules))
                elif stat.S_ISREG(status.st_mode):
                    self.files += 1
                    old = known.get(name)
                    met += old is not None
                    sign = hash((status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns))
                    if sign != old:
                        changed[name] = sign
        gone = () if met >= len(known) else tuple(set(known) - set(os.listdir(folder)))  # noqa: PTH208 - names
        return Seen(folder, changed, gone) if changed or gone else None
