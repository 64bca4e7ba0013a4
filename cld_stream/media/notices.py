"""What the system tells of changes below folders. Only ever a hint: whoever relies on it looks for himself as well."""

import threading
from collections.abc import Sequence

from watchfiles import watch

__all__ = ["Notices"]

_MOST = 10_000  # paths kept; more are no hint any more


class Notices:
    """Collects changed paths in a thread of its own, until it is closed or the system refuses.

    Args:
        folders: existing ones; watched with everything below them.

    Attributes:
        refused: why the system does not tell ("" = it does).
    """

    def __init__(self, folders: Sequence[str]) -> None:
        self.refused = ""
        self._paths: set[str] = set()
        self._lock, self._end = threading.Lock(), threading.Event()
        threading.Thread(target=self._run, args=(folders,), name="notices", daemon=True).start()

    def take(self) -> set[str] | None:
        """Paths that changed since the last time; None = too many to tell."""
        with self._lock:
            paths, self._paths = self._paths, set()
        return paths if len(paths) < _MOST else None

    def close(self) -> None:
        """Let the system go."""
        self._end.set()

    def _run(self, folders: Sequence[str]) -> None:
        try:
            for changes in watch(
                *folders, watch_filter=None, step=100, debounce=500, stop_event=self._end, rust_timeout=1000,
                yield_on_timeout=False, raise_interrupt=False, ignore_permission_denied=True,
            ):  # fmt: skip
                with self._lock:
                    if len(self._paths) < _MOST:
                        self._paths.update(path for _, path in changes)
        except Exception as error:  # noqa: BLE001 - too few watches, a file system that does not tell, a folder gone
            self.refused = " ".join(str(error).split()) or type(error).__name__
