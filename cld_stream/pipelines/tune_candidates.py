"""Which settings compete: those of a file, or the present ones with one thing changed at a time."""

import json
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

from cld_stream.config import Settings
from cld_stream.errors import UsageError
from cld_stream.pipelines.train import train_settings

__all__ = ["Candidate", "Given", "list_candidates"]

_NO_EFFECT = ("store", "ingest", "buffer", "train", "publish")

_FACTORS = (0.5, 2.0)  # of a temperature
_WEIGHTS = (0.0, 0.25, 1.0)  # lambda: without CLD, and the ends of what was published
_RATIOS = (0.25, 0.5, 1.0)  # K over the batch; published: 0.5 to 0.8

_EXAMPLE = "[[candidates]] tables of settings, for example: loss.temperature_instance = [0.05, 0.1]"


@dataclass(frozen=True)
class Given:
    """What the user's command says of the settings, as `train` takes it.

    Attributes:
        device: decides the recipe where none is named.
        store_path: of what was trained there `train` keeps some; `tune` says where.
    """

    device: str = "cpu"
    recipe: str | None = None
    config: Path | None = None
    overrides: tuple[str, ...] = ()
    store_path: Path | None = None

    def settings(self, changes: Sequence[str] = ()) -> Settings:
        """The settings that `train` would use, and with further `--set` values over them."""
        sets = [*self.overrides, *changes]
        return train_settings(self.device, self.config, sets, recipe=self.recipe, store_path=self.store_path)


@dataclass(frozen=True)
class Candidate:
    """Settings that compete.

    Attributes:
        changes: `section.key=value` over the present settings; none = the present settings.
    """

    changes: tuple[str, ...]
    settings: Settings

    @property
    def name(self) -> str:
        """For people."""
        return " ".join(self.changes) or "the present settings"


def list_candidates(given: Given, file: Path | None) -> list[Candidate]:
    """The present settings, then the others; what comes to the same settings stands once.

    Args:
        file: TOML with `[[candidates]]` tables; a list of values stands for each of them, several lists for every
            combination. None: one temperature, the weight or the number of groups is changed at a time.

    Raises:
        UsageError: the file cannot be read, names an unknown setting or one without effect, or changes nothing.
    """
    present = given.settings()
    found = [Candidate((), present)]
    for where, changes in _read(file) if file else [("", c) for c in _around(present)]:
        try:
            settings = given.settings(changes)
        except UsageError as e:
            raise UsageError(f"{where}{str(e).removeprefix('--set ')}") from None
        if all(settings != other.settings for other in found):
            found.append(Candidate(changes, settings))
    if len(found) < 2:
        raise UsageError(f"{file}: no candidate differs from the present settings. Write {_EXAMPLE}")
    return found


def _around(present: Settings) -> Iterator[tuple[str, ...]]:
    """One thing changed at a time."""
    loss, batch = present.loss, present.optim.batch
    if loss.branch != "byol":  # which has no temperature
        yield from ((f"loss.temperature_instance={loss.temperature_instance * f:g}",) for f in _FACTORS)
    yield from ((f"loss.cld_weight={w:g}",) for w in _WEIGHTS)
    if loss.cld_weight > 0:
        yield from ((f"loss.temperature_group={loss.temperature_group * f:g}",) for f in _FACTORS)
        yield from ((f"loss.groups={max(1, round(r * batch))}",) for r in _RATIOS)


def _read(file: Path) -> Iterator[tuple[str, tuple[str, ...]]]:
    """Where each candidate of the file stands, and its changes."""
    try:
        tree = tomllib.loads(file.read_text())
    except OSError as e:
        raise UsageError(f"{file}: cannot read the candidates: {e.strerror}. Check --candidates.") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as e:
        raise UsageError(f"{file}: not valid TOML: {e}. Write {_EXAMPLE}") from None
    tables = tree.get("candidates")
    if not isinstance(tables, list) or len(tree) > 1 or not all(isinstance(t, Mapping) for t in tables):
        raise UsageError(f"{file}: expected nothing but {_EXAMPLE}")
    for number, table in enumerate(tables, 1):
        where = f"{file}, candidate {number}: "
        choices = [[f"{name}={json.dumps(v, default=str)}" for v in values] for name, values in _flat(table, where)]
        yield from ((where, changes) for changes in product(*choices))


def _flat(table: Mapping[str, Any], where: str) -> Iterator[tuple[str, list[Any]]]:
    """`section.key` and the values it takes."""
    for section, keys in table.items():
        if not isinstance(keys, Mapping):
            raise UsageError(f"{where}{section}: expected section.key = value, for example loss.groups = 32")
        for key, values in keys.items():
            name = f"{section}.{key}"
            if name == "optim.seed":
                raise UsageError(f"{where}{name}: seeds are for --seeds, the same ones for every candidate")
            if section in _NO_EFFECT:
                raise UsageError(f"{where}{name} has no effect on a short run. Change encoder, loss, augment or optim.")
            if values == [] or isinstance(values, Mapping):
                raise UsageError(f"{where}{name}: expected a value, or a list of values to try")
            yield name, values if isinstance(values, list) else [values]
