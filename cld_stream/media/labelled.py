"""Pictures with labels, as people keep them: class folders, or a table."""

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from cld_stream.errors import UsageError
from cld_stream.media.discover import natural_key
from cld_stream.media.tables import CLOCKS, clock_of, read_rows, split_filter

__all__ = ["TEST", "TRAIN", "LabelledPicture", "read_labelled"]

TRAIN, TEST = "train", ("test", "val", "valid", "validation", "eval")
"""Names of splits. Of several test splits the first one here counts."""

_TABLE = "labels.tsv"


@dataclass(frozen=True, slots=True)
class LabelledPicture:
    """A file and what is known of it.

    Attributes:
        sequence: pictures of one sequence are near-repeats; None = it stands alone.
        split: as given, or None.
    """

    path: Path
    label: str
    sequence: str | None = None
    split: str | None = None


def read_labelled(text: str) -> list[LabelledPicture]:
    """Pictures in order: sequences by first appearance, the pictures of one in time.

    Args:
        text: one of
            FOLDER/class/picture, or FOLDER/train/class/picture beside FOLDER/test (or val, valid, validation, eval);
                a folder below a class folder is one sequence, a picture right in it stands alone;
            FOLDER with a labels.tsv in it;
            TABLE.tsv[?column=value]: columns `path` (relative to the table), `label`, optional `sequence`, `split`,
                and one of `time`, `frame`, `order`.

    Raises:
        UsageError: there is no such thing, or no labelled picture in it; a label is missing.
    """
    path, where = split_filter(text)
    if path.is_dir():
        table = path / _TABLE
        if where and not table.is_file():
            raise UsageError(f"{text}: only a table can be filtered with `?`, and there is no {_TABLE} in the folder.")
        try:
            return _read_table(table, where) if table.is_file() else _read_folder(path)
        except OSError as error:
            raise UsageError(f"{error.filename}: cannot be read: {error.strerror}. Check its permissions.") from None
    if not path.exists():
        raise UsageError(f"{path}: no such file or folder. Give a folder of class folders, or a table with labels.")
    return _read_table(path, where)


def _read_table(path: Path, where: dict[str, str]) -> list[LabelledPicture]:
    columns, rows = read_rows(path, where, {"path", "label"})
    unlabelled = [row[""] for row in rows if not row["label"]]
    if unlabelled:
        raise UsageError(
            f"{path}: line {unlabelled[0]} has no label ({len(unlabelled):,} of {len(rows):,} rows have none). "
            "Fill them in, or leave those rows out."
        )
    clock = next((c for c in CLOCKS if c in columns), None)
    if clock and "sequence" in columns:
        first: dict[str, int] = {}
        for place, row in enumerate(rows):
            first.setdefault(row["sequence"], place)
        parse = clock_of(path, clock)
        at = [(first[r["sequence"]], parse(r)[0]) if r["sequence"] else (n, 0.0) for n, r in enumerate(rows)]
        rows = [rows[n] for n in sorted(range(len(rows)), key=at.__getitem__)]
    return [
        LabelledPicture(path.parent / row["path"], row["label"], row.get("sequence") or None, row.get("split") or None)
        for row in rows
    ]


def _read_folder(folder: Path) -> list[LabelledPicture]:
    inside = _subfolders(folder)
    splits = [name for name in (TRAIN, *TEST) if name in inside]
    if TRAIN in splits and len(splits) > 1:
        found = [p for name in splits for p in _class_folders(folder / name, name)]
    else:
        found = list(_class_folders(folder, None))
    if not found:
        raise UsageError(
            f"{folder}: no class folders with pictures in it. Expected {folder}/CLASS/PICTURE, or "
            f"{folder}/train/CLASS/PICTURE and {folder}/test/CLASS/PICTURE, or a {_TABLE}."
        )
    return found


def _class_folders(folder: Path, split: str | None) -> Iterator[LabelledPicture]:
    for label in _subfolders(folder):
        top = folder / label
        for place, folders, names in os.walk(top):
            folders[:] = sorted((n for n in folders if not n.startswith(".")), key=natural_key)
            alone = place == str(top)
            for name in sorted((n for n in names if not n.startswith(".")), key=natural_key):
                yield LabelledPicture(Path(place, name), label, None if alone else place, split)


def _subfolders(folder: Path) -> list[str]:
    names = (entry.name for entry in folder.iterdir() if entry.is_dir() and not entry.name.startswith("."))
    return sorted(names, key=natural_key)
