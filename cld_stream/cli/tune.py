"""`cld-stream tune`: which settings suit this footage."""

from pathlib import Path
from typing import Annotated

import typer

from cld_stream.cli.options import (
    DEFAULT_STORE,
    ConfigOption,
    DeviceOption,
    JsonOption,
    RecipeOption,
    SetOption,
    StoreOption,
)
from cld_stream.cli.output import answer_json
from cld_stream.cli.stopping import StopSignals


def add_to(app: typer.Typer) -> None:
    """Register the commands of this file."""
    app.command(epilog="Example: cld-stream tune --candidates mine.toml --out tuned.toml")(tune)


def tune(
    store: StoreOption = DEFAULT_STORE,
    candidates: Annotated[
        Path | None,
        typer.Option(
            help="TOML file with tables of settings to try; a list stands for each of its values.",
            show_default="one temperature, lambda or K changed at a time",
        ),
    ] = None,
    steps: Annotated[int, typer.Option(help="Steps of each short run.", min=1)] = 600,
    seeds: Annotated[int, typer.Option(help="Runs of each candidate.", min=1, max=100)] = 2,
    frames: Annotated[int, typer.Option(help="Frames of the store to use, at most.", min=128)] = 4096,
    out: Annotated[Path | None, typer.Option(help="Write the best settings (TOML, for --config).")] = None,
    device: DeviceOption = "auto",
    recipe: RecipeOption = None,
    config: ConfigOption = None,
    set: SetOption = None,  # noqa: A002 - its variable is CLD_STREAM_..._SET
    json: JsonOption = False,
) -> None:
    """Compare settings on your own footage without labels: short runs, ranked by how well held-out frames are found."""
    with StopSignals() as stop:  # the imports take seconds
        from cld_stream.cli.progress import TuneDisplay, print_tune_report
        from cld_stream.pipelines.device import choose_device
        from cld_stream.pipelines.tune import Given
        from cld_stream.pipelines.tune import tune as run

        given = Given(choose_device(device), recipe, config, tuple(set or ()))
        with TuneDisplay() as display:
            report = run(
                store, given, candidates=candidates, steps=steps, seeds=seeds, frames=frames, out=out,
                on_progress=display, stop=stop,
            )  # fmt: skip
    if json:
        answer_json(report.as_dict())
    else:
        print_tune_report(report)
