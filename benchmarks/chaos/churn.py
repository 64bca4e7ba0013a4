"""Files that come, grow, change names and go."""

import random
import shutil
import time
from pathlib import Path

import av
import numpy as np

__all__ = ["Churn", "clip"]

_EVERY_S = 1.5
_PIECES = 8
_ADDED, _RENAMED, _REMOVED = 0.6, 0.15, 0.1  # of the times that something is due


class Churn:
    """Changes a folder a little whenever it is due. A whole copy of every file is kept for the verifier.

    A file's number stays in its name whatever becomes of it: `0012.mkv`, `0012-b.mkv`.

    Args:
        most: files beyond which one goes whenever one comes; None: the folder grows.

    Attributes:
        removed: numbers of the files that went; added, renamed, grown: how many.
    """

    def __init__(self, media: Path, kept: Path, rng: random.Random, most: int | None = None) -> None:
        self._media, self._kept, self._rng, self._most = media, kept, rng, most
        self.removed: set[str] = set()
        self.added = self.renamed = self.grown = 0
        self._due, self._growing = 0.0, dict[Path, tuple[bytes, int]]()
        media.mkdir()
        kept.mkdir()

    def step(self) -> None:
        """Do what is due."""
        now = time.monotonic()
        if now < self._due:
            return
        self._due = now + self._rng.uniform(0.3, 1.7) * _EVERY_S
        for path, (data, at) in list(self._growing.items()):
            self._write_on(path, data, at)
        dice = self._rng.random()
        if dice < _ADDED:
            self._add()
            if self._most is not None and self.added - len(self.removed) > self._most:
                self._remove()
        elif dice < _ADDED + _RENAMED:
            self._rename()
        elif dice < _ADDED + _RENAMED + _REMOVED:
            self._remove()

    def finish(self) -> None:
        """Complete what grows."""
        for path, (data, at) in list(self._growing.items()):
            with path.open("ab") as f:
                f.write(data[at:])
        self._growing.clear()

    def _add(self) -> None:
        number = self.added
        self.added += 1
        grows = self._rng.random() < 0.3
        whole = clip(self._kept / f"{number:05d}.{'ts' if grows else 'mkv'}", self._rng.randint(2, 8), number)
        path = self._media / whole.name
        if grows:
            self.grown += 1
            path.touch()
            self._write_on(path, whole.read_bytes(), 0)
        else:
            aside = path.with_name(f".{path.name}")
            shutil.copyfile(whole, aside)
            aside.rename(path)

    def _write_on(self, path: Path, data: bytes, at: int) -> None:
        end = min(len(data), at + len(data) // _PIECES + 1)
        with path.open("ab") as f:
            f.write(data[at:end])
        if end < len(data):
            self._growing[path] = data, end
        else:
            self._growing.pop(path, None)

    def _rename(self) -> None:
        if path := self._any():
            path.rename(path.with_name(f"{path.stem}-{self._rng.randint(0, 9)}{path.suffix}"))
            self.renamed += 1

    def _remove(self) -> None:
        if path := self._any():
            path.unlink()
            self.removed.add(path.stem[:5])

    def _any(self) -> Path | None:
        files = [p for p in sorted(self._media.glob("[0-9]*")) if p not in self._growing]
        return self._rng.choice(files) if files else None


def clip(path: Path, seconds: int, seed: int) -> Path:
    """A small video of its own."""
    rng = np.random.default_rng(seed)
    scene = np.kron(rng.integers(0, 256, (20, 30, 3), dtype=np.uint8), np.ones((8, 8, 1), np.uint8))
    with av.open(str(path), "w", format="mpegts" if path.suffix == ".ts" else "matroska") as out:
        stream = out.add_stream(
            "mpeg4" if path.suffix == ".mkv" else "mpeg2video", rate=10 if path.suffix == ".mkv" else 25
        )
        stream.width, stream.height, stream.pix_fmt = 96, 64, "yuv420p"
        stream.codec_context.gop_size = 5
        for t in range(seconds * int(stream.codec_context.framerate)):
            view = np.ascontiguousarray(np.roll(scene, 2 * t, 1)[:64, :96])
            out.mux(stream.encode(av.VideoFrame.from_ndarray(view, format="rgb24")))
        out.mux(stream.encode())
    return path
