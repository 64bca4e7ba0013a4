"""`cld-stream train`: the daemon."""

from dataclasses import fields
from typing import Annotated

import typer

from cld_stream.cli.options import (
    DEFAULT_STORE,
    ConfigOption,
    DeviceOption,
    JsonOption,
    PortOption,
    RecipeOption,
    SetOption,
    StoreOption,
)
from cld_stream.cli.output import answer_json, console
from cld_stream.cli.stopping import StopSignals


def add_to(app: typer.Typer) -> None:
    """Register the commands of this file."""
    app.command(epilog="Example: cld-stream train --until-caught-up")(train)


def train(
    store: StoreOption = DEFAULT_STORE,
    steps: Annotated[int | None, typer.Option(help="Stop after this many further steps.", min=1)] = None,
    until_caught_up: Annotated[
        bool,
        typer.Option(
            "--until-caught-up",
            help="Stop once every frame was fed and up to train.idle_steps replayed steps are done.",
        ),
    ] = False,
    init: Annotated[str | None, typer.Option(help="random, pretrained, or a .safetensors file.")] = None,
    device: DeviceOption = "auto",
    port: PortOption = None,
    recipe: RecipeOption = None,
    config: ConfigOption = None,
    set: SetOption = None,  # noqa: A002 - its variable is CLD_STREAM_..._SET
    json: JsonOption = False,
) -> None:
    """Keep training on the store, publish encoders, follow what ingest adds. Resumes by itself; runs until stopped."""
    with StopSignals() as stop:  # the imports take seconds
        from cld_stream.cli.progress import TrainDisplay, print_train_summary
        from cld_stream.pipelines.device import choose_device
        from cld_stream.pipelines.metrics import TrainReport
        from cld_stream.pipelines.train import STREAM, train_settings
        from cld_stream.pipelines.train import train as run
        from cld_stream.storage.header import read_header

        chosen = choose_device(device)
        flags = {"encoder.init": init, "ops.port": port}
        given = [f"{key}={value}" for key, value in flags.items() if value is not None]
        settings = train_settings(chosen, config, [*(set or []), *given], recipe=recipe, store_path=store)
        if stop():
            console.print("Stopped before training began.")
            if json:  # what nobody has looked at is null
                answer_json(dict.fromkeys(f.name for f in fields(TrainReport)) | {"steps": 0, "seconds": 0.0})
            return
        read_header(store)  # that there is no store is said alone
        if chosen == "cpu" and not recipe:
            of = f"{settings.encoder.backbone}, width {settings.encoder.width:g}, {settings.encoder.crop} px"
            console.print(f"No GPU in use: taking the recipe {STREAM} ({of}).", soft_wrap=True)
        with TrainDisplay() as display:
            report = run(
                store, settings, device=chosen, recipe=recipe or STREAM, steps=steps,
                until_caught_up=until_caught_up, on_progress=display, stop=stop,
            )  # fmt: skip
    if json:
        answer_json(report.as_dict())
    else:
        print_train_summary(report)
