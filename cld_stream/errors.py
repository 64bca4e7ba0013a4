"""Every failure that the program foresees, and the exit code of each.

    CldError                  1   something failed; the message says what, where, why and what to do next
    ├── UsageError            2   the command line or a setting is wrong
    ├── LockHeldError         3   another process holds the lock; names its pid and argv
    ├── BrokenFilesError      4   finished, but some files were broken and --strict was given
    ├── GuardStopError        5   stopped by the guard for good: do not restart
    ├── HeldError             1   an encoder is not published by hand unless --force is given
    ├── DeviceFullError       1   memory does not hold the least that the work needs: passes when some is freed
    ├── PortTakenError        1   something else listens on the port: passes when it lets go
    ├── StoreError            1   a store, snapshot or checkpoint is absent, damaged or of a newer format
    │   ├── StoreNotFoundError  2
    │   ├── FormatTooNewError   1
    │   ├── StoreFullError      1   no space left: passes when some is freed
    │   ├── StoreBusyError      1   another process keeps the catalog: passes when it lets go
    │   └── CorruptError        1
    └── MediaError            1   a file or camera cannot be read; ingest turns it into an outcome

A `CldError` is printed as its message alone, without a traceback. Anything else that escapes is a bug of ours.
"""

from typing import ClassVar


class CldError(Exception):
    """A foreseen failure. The message is complete: what, where, why, and the next action."""

    exit_code: ClassVar[int] = 1


class UsageError(CldError):
    """The command line or a setting is wrong."""

    exit_code = 2


class LockHeldError(CldError):
    """Another process holds the lock."""

    exit_code = 3


class BrokenFilesError(CldError):
    """The run finished, but some files were broken and `--strict` was given."""

    exit_code = 4


class GuardStopError(CldError):
    """Training went wrong again after every remedy; a restart would repeat it."""

    exit_code = 5


class HeldError(CldError):
    """This encoder is not published by hand unless forced: it is untrained, old, or held by the guard."""


class DeviceFullError(CldError):
    """The memory of the device does not hold the least that the work needs."""


class PortTakenError(CldError):
    """Something else listens on the port for probes and metrics."""


class StoreError(CldError):
    """A store, snapshot or checkpoint cannot be used."""


class StoreNotFoundError(StoreError):
    """There is no store (or no such snapshot, frame or source in it)."""

    exit_code = 2


class FormatTooNewError(StoreError):
    """Written by a newer release than this one."""


class StoreFullError(StoreError):
    """No space is left on the store's disk. Nothing that was there is harmed."""


class StoreBusyError(StoreError):
    """Another process has kept the catalog for too long."""


class CorruptError(StoreError):
    """Bytes on disk are not what was written."""


class MediaError(CldError):
    """A file or camera cannot be read."""
