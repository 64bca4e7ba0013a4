"""Which files have stood still for long enough to be taken. Knows no files, only what it is told, and no clock."""

from collections import Counter
from collections.abc import Collection, Iterator
from dataclasses import dataclass

__all__ = ["Settling"]


@dataclass(slots=True)
class _Waiting:
    sign: int
    since: float  # unchanged
    first: float  # seen
    next_take: float  # while it grows
    taken: bool = False


class Settling:
    """Files on their way.

    Args:
        settle_s: a file is still once it has not changed for so long; one that was taken while it grew, only after
            `growing_s`, since recorders pause.
        growing_s: one that changes for longer than this is worth taking as far as it goes.
    """

    def __init__(self, settle_s: float, growing_s: float) -> None:
        self._settle_s, self._growing_s = settle_s, max(growing_s, settle_s)
        self._waiting: dict[str, _Waiting] = {}  # in the order of `since`
        self._folders: Counter[str] = Counter()

    def __len__(self) -> int:
        return len(self._waiting)

    def __contains__(self, path: object) -> bool:
        return path in self._waiting

    def __iter__(self) -> Iterator[str]:
        return iter(self._waiting)

    def count(self, folder: str) -> int:
        """Files of a folder that are on their way."""
        return self._folders[folder]

    def see(self, path: str, sign: int, now: float) -> None:
        """A file was met; `sign` changes whenever the file does."""
        old = self._waiting.get(path)
        if old is not None and old.sign == sign:
            return
        if old is None:
            self._folders[path.rpartition("/")[0]] += 1
            self._waiting[path] = _Waiting(sign, now, now, now + self._growing_s)
        else:
            old.sign, old.since = sign, now
            self._waiting[path] = self._waiting.pop(path)

    def drop(self, path: str) -> None:
        """It is gone, or taken for good."""
        if self._waiting.pop(path, None) is not None:
            folder = path.rpartition("/")[0]
            self._folders[folder] -= 1
            if not self._folders[folder]:
                del self._folders[folder]

    def sign(self, path: str, now: float) -> int | None:
        """Of a file that stands still; None while it is on its way."""
        file = self._waiting[path]
        return file.sign if now - file.since >= self._settle_s else None

    def still(self, now: float, limit: int, held: Collection[str] = ()) -> list[tuple[str, int]]:
        """(path, sign) of files that stand still, longest first, at most `limit`; none of the folders `held`."""
        found: list[tuple[str, int]] = []
        for path, file in self._waiting.items():
            if len(found) >= limit or now - file.since < self._settle_s:
                break
            ready = not file.taken or now - file.since >= self._growing_s
            if ready and not (held and path.rpartition("/")[0] in held):
                found.append((path, file.sign))
        return found

    def growing(self, now: float) -> list[str]:
        """Files that have been changing for long enough to be taken as they are."""
        return [
            path
            for path, file in self._waiting.items()
            if now >= file.next_take and file.since > file.first and now - file.since < self._growing_s
        ]

    def took(self, path: str, now: float, spent_s: float, *, useful: bool) -> None:
        """A growing file was read, which took `spent_s`; not again before ten times that, so that it stays cheap."""
        file = self._waiting.get(path)
        if file is not None:
            file.taken = file.taken or useful
            file.next_take = now + max(self._growing_s, 10 * spent_s)
