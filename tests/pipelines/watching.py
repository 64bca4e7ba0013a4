"""A watch in a thread of this process, with what it said."""

import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Any

from cld_stream.config import IngestSettings, Settings, StoreSettings
from cld_stream.pipelines.report import WatchEvent, WatchReport
from cld_stream.pipelines.watch import watch
from cld_stream.storage.schema import SourceRow
from cld_stream.storage.store import Store

__all__ = ["QUICK", "Watching", "arrive", "ledger", "times"]

QUICK = Settings(
    store=StoreSettings(size=32, shard_frames=16),
    ingest=IngestSettings(
        workers=1, commit_s=0.05, settle_s=0.15, poll_s=0.05, growing_s=0.3, notices="never",
        camera_timeout_s=2.0, camera_retry_s=0.5,
    ),
)  # fmt: skip


class Watching:
    """Context manager; what `watch` raised is raised again when it ends."""

    def __init__(self, store: Path, *inputs: Path | str, retry_broken: bool = False, **changes: Any) -> None:
        self.events: list[WatchEvent] = []
        self.report: WatchReport | None = None
        self._end, self._error = threading.Event(), None
        settings = replace(QUICK, ingest=replace(QUICK.ingest, **changes))

        def run() -> None:
            try:
                self.report = watch(
                    store, [str(i) for i in inputs], settings,
                    retry_broken=retry_broken, on_event=self.events.append, stop=self._end.is_set,
                )  # fmt: skip
            except BaseException as error:  # noqa: BLE001
                self._error = error

        self._thread = threading.Thread(target=run)

    def __enter__(self) -> "Watching":
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, e: BaseException | None, t: TracebackType | None) -> None:
        self._end.set()
        self._thread.join()
        if kind is None and self._error is not None:
            raise self._error

    def until(self, holds: Callable[[], object], seconds: float = 100.0) -> None:
        """Wait for something that will be so before long."""
        deadline = time.monotonic() + seconds
        while not holds():
            assert self._thread.is_alive(), f"the watch has ended: {self._error!r}"
            assert time.monotonic() < deadline, f"not within {seconds:g} s; seen: {self.events}"
            time.sleep(0.02)

    def taken(self, name: str) -> list[WatchEvent]:
        """What was said of a file."""
        return [e for e in self.events if e.event == "file" and Path(e.path).name == name]

    def until_taken(self, *names: str) -> None:
        """Wait for an outcome of each file, but that it is still being written."""
        self.until(lambda: all(any(e.reason[:5] != "still" for e in self.taken(n)) for n in names))

    def quiet(self, seconds: float = 0.7) -> None:
        """Let so many looks pass, in which nothing new may be said."""
        before = list(self.events)
        time.sleep(seconds)
        assert self.events == before


def ledger(store: Path) -> dict[str, SourceRow]:
    """Sources by file name; of several, the last."""
    with Store.open(store) as opened:
        return {Path(s.path).name: s for s in opened.catalog.sources()}


def times(store: Path, source: int) -> list[float]:
    """Positions of a source's frames, in the order of their ids."""
    with Store.open(store) as opened:
        return [float(t) for t in opened.catalog.rows(opened.catalog.live_ids(source=source)).time_s]


def arrive(make: Callable[..., Path], path: Path, *args: Any, **more: Any) -> Path:
    """Make a file under a hidden name and give it its own: it is whole from the first moment on."""
    return make(path.with_name(f".{path.name}"), *args, **more).rename(path)
