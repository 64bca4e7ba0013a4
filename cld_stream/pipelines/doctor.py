"""What works on this machine, and whether a store is sound."""

import platform
from collections.abc import Callable
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Literal

from cld_stream.errors import CldError, StoreNotFoundError

State = Literal["ok", "note", "broken"]


@dataclass(frozen=True)
class Check:
    """One thing looked at: `broken` stops a verb from working, `note` does not."""

    name: str
    state: State
    detail: str


@dataclass(frozen=True)
class Doctor:
    """All checks."""

    checks: list[Check]

    @property
    def broken(self) -> bool:
        """Whether anything is."""
        return any(c.state == "broken" for c in self.checks)

    def rows(self) -> list[tuple[str, str, str]]:
        """For a table."""
        return [(c.name, c.state, c.detail) for c in self.checks]

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {"broken": self.broken, "checks": [asdict(c) for c in self.checks]}


def doctor(store: Path, *, rebuild_catalog: bool = False) -> Doctor:
    """Check the machine and, if there is one, the store.

    Args:
        store: where the store should be.
        rebuild_catalog: first make the catalog anew from the shards and what can be read of the damaged one.

    Raises:
        StoreNotFoundError: a rebuild was asked for and there is no store.
        LockHeldError: a rebuild was asked for while a writer is at work.
    """
    checks = [Check("python", "ok", f"{platform.python_version()} on {platform.platform()}")]
    for name, look in _MACHINE.items():
        checks.append(_look(name, look))
    checks += _sandboxes()
    if rebuild_catalog:
        from cld_stream.storage.rebuild import rebuild_catalog as rebuild

        report = rebuild(store)
        checks.append(Check("rebuild", "ok" if report.whole else "note", str(report)))
    checks += _store(store)
    return Doctor(checks)


def _look(name: str, look: Callable[[], str]) -> Check:
    try:
        return Check(name, "ok", look())
    except (ImportError, OSError, RuntimeError, AttributeError, PackageNotFoundError) as e:
        return Check(name, "broken", f"{type(e).__name__}: {e}. Reinstall cld-stream.")


def _decord() -> str:
    import decord

    return f"decord2 {decord.__version__}"


def _pyav() -> str:
    import av

    codecs = [c for c in ("h264", "hevc", "vp9", "av1") if c in av.codecs_available]
    return f"{av.__version__}, decodes {', '.join(codecs)}"


def _photos() -> str:
    import pi_heif
    from PIL import features

    avif = "AVIF" if features.check("avif") else "no AVIF"
    return f"Pillow {version('pillow')}, pi-heif {pi_heif.__version__}, {avif}"


def _jpeg() -> str:
    import numpy as np
    import simplejpeg

    jpeg = simplejpeg.encode_jpeg(np.zeros((8, 8, 3), np.uint8))
    return f"simplejpeg {version('simplejpeg')}, {len(jpeg)} bytes round trip {simplejpeg.decode_jpeg(jpeg).shape}"


def _torch() -> str:
    import torch

    gpus = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    return f"{torch.__version__}, {', '.join(gpus) or 'no GPU: train takes the recipe stream, in the size of a CPU'}"


def _faiss() -> str:
    import faiss

    gpus = faiss.get_num_gpus() if hasattr(faiss, "get_num_gpus") else 0
    return f"{faiss.__version__}, {gpus} GPUs"


def _zarr() -> str:
    import zarr

    return str(zarr.__version__)


_MACHINE: dict[str, Callable[[], str]] = {
    "decord": _decord, "pyav": _pyav, "photos": _photos, "jpeg": _jpeg, "torch": _torch, "faiss": _faiss, "zarr": _zarr,
}  # fmt: skip


def _sandbox(name: str, camera: str) -> Check:
    """What the decoding workers cannot do; a note if this system leaves them something that they should not have."""
    from cld_stream.media.sandbox_check import worker_abilities

    able = worker_abilities(camera)
    allowed = {
        "network": able.network or able.datagrams or able.uring,
        "writing files": able.files,
        "programs": able.programs,
        "processes": able.processes,
        "environment of others": able.outside,
    }
    if camera:
        del allowed["network"]
    denied = ", ".join(f"no {what}" for what, can in allowed.items() if not can) or "nothing denied"
    detail = f"{denied}; {able.descriptors} open files, {len(able.environment)} environment variables"
    left = [what for what, can in allowed.items() if can]
    if not left:
        return Check(name, "ok", detail)
    return Check(name, "note", f"{detail}; NOT denied here: {', '.join(left)} (needs Linux 6.2, x86-64 or ARM64)")


def _sandboxes() -> list[Check]:
    checks = []
    for name, camera in (("file workers", ""), ("camera workers", "net")):
        try:
            checks.append(_sandbox(name, camera))
        except (CldError, OSError) as e:
            checks.append(Check(name, "broken", str(e)))
    return checks


def _store(path: Path) -> list[Check]:
    from cld_stream.storage.check import check
    from cld_stream.storage.store import Store

    try:
        with Store.open(path) as store:
            found = check(store)
            frames = store.catalog.frame_count()
    except StoreNotFoundError:
        return [Check("store", "note", f"there is none at {path}; `cld-stream ingest FOLDER` makes one")]
    except CldError as e:
        return [Check("store", "broken", str(e))]
    broken = [Check("store", "broken", str(f)) for f in found]
    return broken or [Check("store", "ok", f"{path}: {frames:,} frames, every checksum holds")]
