"""Whether a known file that was not met is deleted, or only away with the drive that it lies on."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from cld_stream.media.scan import Known, Scan

__all__ = ["Presence", "below"]


class Presence:
    """Judges by what a look met, and by the devices that folders were on when their files were last met.

    A watched folder that cannot be read, or in which nothing is left, is away: an unmounted drive looks like that. So
    is a folder below it all of whose files are gone, if its place is on another device now. Else a file is deleted.

    Args:
        tops: the watched folders.
        known: what is known below them; it changes.
        say: told when a watched folder goes (with a reason) or is back (None).
    """

    def __init__(self, tops: Sequence[str], known: Known, say: Callable[[str, str | None], None]) -> None:
        self._tops, self._known, self._say = tops, known, say
        self._met: set[str] = set()  # tops with a source below them, ever
        self._devices: dict[str, int] = {}
        self._away: set[str] = set()
        self._gone: dict[str, float] = {}  # file -> since

    def remember(self, tops: Sequence[str], folder: str, device: int) -> None:
        """A source below some tops is known; its folder was on this device."""
        self._met.update(tops)
        self._devices[folder] = device

    def knows(self, top: str) -> bool:
        """Whether something below a folder was taken before."""
        return top in self._met or any(below(folder, top) for folder in self._known)

    def present(self) -> list[Path]:
        """The watched folders that are there."""
        return [Path(top) for top in self._tops if top not in self._away]

    def judge(self, scans: Sequence[Scan], missed: Mapping[str, Sequence[str]], now: float) -> bool:
        """Take in a look, and the known names that it missed in folders; whether a watched folder went or came."""
        away = {scan.top for scan in scans if scan.top in scan.unread or (not scan.files and self.knows(scan.top))}
        for scan in scans:
            if scan.top in away and scan.top not in self._away:
                self._say(scan.top, scan.unread.get(scan.top, "it is empty"))
            elif scan.top in self._away and scan.top not in away:
                self._say(scan.top, None)
        changed, self._away = away != self._away, away
        for scan in scans:  # what is met now may be known, and gone, by the next look
            self._devices |= {folder: on for folder, on in scan.devices.items() if folder not in self._known}
        gone = [path for scan in scans if scan.top not in away for path in self._deleted(scan, missed)]
        self._gone = {path: self._gone.get(path, now) for path in gone}
        return changed

    def gone(self, before: float) -> list[str]:
        """Files that were there until `before` at the latest; each is told once."""
        paths = [path for path, since in self._gone.items() if since <= before]
        for path in paths:
            del self._gone[path]
        return paths

    def _deleted(self, scan: Scan, missed: Mapping[str, Sequence[str]]) -> list[str]:
        out: list[str] = []
        for folder in [f for f in self._known if below(f, scan.top)]:
            here, names, device = folder in scan.devices, self._known[folder], _device(scan, folder)
            lost = missed.get(folder, ()) if here else list(names)
            if device is None or (len(lost) == len(names) and device != self._devices.get(folder, device)):
                continue  # it, or the folder it was in, cannot be read now, or is of another drive
            if here:
                self._devices[folder] = device
            out += [f"{folder}/{name}" for name in lost]
        return out


def below(path: str, top: str) -> bool:
    """Whether a path is a folder or lies in it."""
    return path == top or path.startswith(top.rstrip("/") + "/")


def _device(scan: Scan, folder: str) -> int | None:
    """Of a folder, or of the nearest one above it that is there; None if that cannot be read."""
    while folder not in scan.devices:
        if folder in scan.unread or folder == scan.top:
            return None
        folder = folder.rpartition("/")[0]
    return scan.devices[folder]
