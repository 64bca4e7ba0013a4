"""Bring a store of an older format to the present one."""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from cld_stream.pipelines.ingest import explained
from cld_stream.storage.header import read_header
from cld_stream.storage.migrations import migrate_store, pending_steps

__all__ = ["MigrateReport", "migrate"]


@dataclass(frozen=True)
class MigrateReport:
    """What was done, or would be.

    Attributes:
        version: format of the store before.
        steps: in words, in order.
        backup: where catalog and header were saved before; None in a dry run, or with nothing to do.
    """

    store: str
    version: int
    steps: list[str]
    dry_run: bool
    backup: str | None

    def as_dict(self) -> dict[str, Any]:
        """As JSON."""
        return asdict(self)

    def lines(self) -> list[str]:
        """For a person."""
        if not self.steps:
            return [f"{self.store} has format {self.version}, the newest that this cld-stream knows. Nothing to do."]
        would = "would be" if self.dry_run else "were"
        out = [f"{self.store} had format {self.version}. These steps {would} taken:", *self.steps]
        return (
            [*out, f"Catalog and header as they were: {self.backup}"] if self.backup else [*out, "Nothing was changed."]
        )


def migrate(store: Path, *, dry_run: bool = False) -> MigrateReport:
    """Take the numbered steps that the store still needs; catalog and header are saved before.

    Args:
        dry_run: only say which.

    Raises:
        StoreNotFoundError: there is no store.
        FormatTooNewError: a newer release wrote it.
        LockHeldError: someone works on the store.
        StoreError: the disk is full.
    """
    version, steps = read_header(store).version, pending_steps(store)
    try:
        backup = None if dry_run else migrate_store(store)
    except OSError as error:
        raise explained(store, error) from error
    told = [f"{step.number} -> {step.number + 1}: {step.what}" for step in steps]
    return MigrateReport(str(store), version, told, dry_run, None if backup is None else str(backup))
