"""`store.json`: which format this is, and what is fixed when a store is made."""

import json
import time
import uuid
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

from cld_stream.config import StoreSettings
from cld_stream.errors import CorruptError, FormatTooNewError, StoreError, StoreNotFoundError
from cld_stream.storage.durable import atomic_write_json

__all__ = ["Header", "read_header", "require_in_place", "set_version", "write_header"]

_FORMAT, VERSION = "cld-stream.store", 1


@dataclass(frozen=True, slots=True)
class Header:
    """The header of a store; fields as in `SPEC.md` section 1."""

    uuid: str
    created_utc: float
    size: int
    fit: Literal["stretch", "crop", "pad"]
    jpeg_quality: int
    shard_frames: int
    version: int = VERSION


def write_header(path: Path, settings: StoreSettings) -> None:
    """Write a new header; from then on the folder is a store."""
    new = Header(uuid=uuid.uuid4().hex, created_utc=time.time(), **asdict(settings))
    atomic_write_json(path / "store.json", {"format": _FORMAT, **asdict(new)})


def set_version(path: Path, version: int) -> None:
    """Note that the store has this format now; the rest of its header stays."""
    file = path / "store.json"
    atomic_write_json(file, json.loads(file.read_bytes()) | {"version": version})


def read_header(path: Path) -> Header:
    """Read the header of a store.

    Raises:
        StoreNotFoundError: there is no store.
        FormatTooNewError: a newer release wrote it.
        CorruptError: the header is damaged.
    """
    file = path / "store.json"
    try:
        data = json.loads(file.read_bytes())
        if data["format"] != _FORMAT:
            raise CorruptError(f"{file}: this is a {data['format']!r}, not a store. Check --store.")
        if data["version"] > VERSION:
            raise FormatTooNewError(
                f"{path} has store format {data['version']}; this cld-stream reads up to {VERSION}. "
                "Upgrade cld-stream the way it was installed."
            )
        return Header(**{name: data[name] for name in Header.__slots__})
    except (FileNotFoundError, NotADirectoryError):
        raise StoreNotFoundError(
            f"{path}: there is no store here. Make one with `cld-stream ingest PATH --store {path}`, or check --store."
        ) from None
    except OSError as e:
        raise CorruptError(f"{file}: cannot be read: {e.strerror}. Check its permissions.") from None
    except (ValueError, LookupError, TypeError) as e:
        raise CorruptError(f"{file}: the header is damaged ({e}). Restore it from a backup.") from None


def require_in_place(path: Path, header: Header) -> None:
    """The store that was opened here is here still: what is open goes with a folder that is moved, new files do not.

    Raises:
        StoreError: it is not, or another one is.
    """
    with suppress(CorruptError):  # it cannot be read now, but is there
        try:
            here = read_header(path).uuid == header.uuid
        except StoreNotFoundError:
            here = False
        if not here:
            raise StoreError(
                f"{path}: the store was moved or removed, or its drive is away. What it holds is as it was; "
                "run the same command again where it is now."
            )
