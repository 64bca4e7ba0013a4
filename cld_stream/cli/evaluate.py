"""`cld-stream eval`: what an encoder is worth."""

from typing import Annotated

import typer

from cld_stream.cli.options import DEFAULT_STORE, DeviceOption, JsonOption, StoreOption
from cld_stream.cli.output import answer_json
from cld_stream.cli.stopping import StopSignals


def add_to(app: typer.Typer) -> None:
    """Register the commands of this file."""
    app.command("eval", epilog="Example: cld-stream eval --labels ~/Pictures/by-kind --probes knn,linear")(evaluate)


def evaluate(
    store: StoreOption = DEFAULT_STORE,
    labels: Annotated[
        str | None,
        typer.Option(
            help="Labelled pictures: FOLDER/CLASS/PICTURE (also under train/ and test/), or a table with path and "
            "label.",
            show_default="the store's own frames",
            metavar="FOLDER|labels.tsv",
        ),
    ] = None,
    snapshot: Annotated[str, typer.Option(help="Snapshot id.")] = "latest",
    checkpoint: Annotated[
        str | None, typer.Option(help="Judge a checkpoint instead: its step, or latest.", metavar="STEP|latest")
    ] = None,
    space: Annotated[str, typer.Option(help="instance, group or backbone.")] = "instance",
    probes: Annotated[
        str | None,
        typer.Option(
            help="Some only, for example knn,linear; fine-tuning-1 and fine-tuning-10 (slow) only by name.",
            metavar="NAME,...",
        ),
    ] = None,
    device: DeviceOption = "auto",
    json: JsonOption = False,
) -> None:
    """Say what the features are worth: with labels where there are some, and without. Every number: docs/eval.md."""
    with StopSignals() as stop:  # the imports take seconds
        from cld_stream.cli.progress import EvalDisplay
        from cld_stream.cli.tables import print_eval
        from cld_stream.pipelines.device import choose_device
        from cld_stream.pipelines.evaluate import evaluate as run

        names = [name.strip() for name in (probes or "").split(",") if name.strip()]
        with EvalDisplay() as display:
            report = run(
                store, labels=labels, snapshot=snapshot, checkpoint=checkpoint, space=space, names=names,
                device=choose_device(device), on_progress=display, stop=stop,
            )  # fmt: skip
    if json:
        answer_json(report.as_dict())
    else:
        print_eval(report)
