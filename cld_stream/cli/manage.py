"""`status`, `forget`, `doctor`, `migrate`, `config`, `demo`."""

from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from cld_stream.cli.options import DEFAULT_STORE, ConfigOption, JsonOption, SetOption, StoreOption
from cld_stream.cli.output import answer, answer_json, console, safe


def add_to(app: typer.Typer) -> None:
    """Register the commands of this file."""
    app.command(epilog="Example: cld-stream status --json")(status)
    app.command(epilog="Example: cld-stream forget Videos/birthday.mp4")(forget)
    app.command(epilog="Example: cld-stream doctor --store ./cld-store")(doctor)
    app.command(epilog="Example: cld-stream migrate --dry-run")(migrate)
    app.command(epilog="Example: cld-stream config > settings.toml")(config)
    app.command(epilog="Example: cld-stream demo --media ~/Videos --out demo-out")(demo)


def status(store: StoreOption = DEFAULT_STORE, json: JsonOption = False) -> None:
    """Say what is in the store, who works on it, and how far training has come."""
    from cld_stream.cli.tables import print_table
    from cld_stream.pipelines.status import status as run

    report = run(store)
    if json:
        answer_json(report.as_dict())
    else:
        print_table(("", ""), report.lines())


def forget(
    source: Annotated[str, typer.Argument(help="Path, unique end of a path, or id of the source.")],
    store: StoreOption = DEFAULT_STORE,
    json: JsonOption = False,
) -> None:
    """Remove a source's frames from the disk for good, and their features from every snapshot."""
    from cld_stream.pipelines.forget import forget as run

    gone = run(store, source)
    if json:
        answer_json(gone.as_dict())
    else:
        answer(f"Forgot {safe(gone.path)}: {gone.frames:,} frames are gone from the store and its snapshots.")


def doctor(
    store: StoreOption = DEFAULT_STORE,
    rebuild_catalog: Annotated[
        bool, typer.Option("--rebuild-catalog", help="Make a damaged catalog anew from what can be read.")
    ] = False,
    json: JsonOption = False,
) -> None:
    """Check readers, devices, versions and the store's health. Exit 1 when something is broken."""
    from cld_stream.cli.tables import print_table
    from cld_stream.pipelines.doctor import doctor as run

    report = run(store, rebuild_catalog=rebuild_catalog)
    if json:
        answer_json(report.as_dict())
    else:
        print_table(("check", "state", "detail"), report.rows())
    if report.broken:
        raise typer.Exit(1)


def migrate(
    store: StoreOption = DEFAULT_STORE,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would be done; write nothing.")] = False,
    json: JsonOption = False,
) -> None:
    """Bring a store that an older release wrote to the present format; its catalog and header are saved before."""
    from cld_stream.pipelines.migrate import migrate as run

    report = run(store, dry_run=dry_run)
    if json:
        answer_json(report.as_dict())
    else:
        answer("\n".join(map(safe, report.lines())))


def config(
    recipe: Annotated[
        str | None, typer.Option(help="Packaged settings instead of those: stream, cpu, gpu, moco-cld-32, ...")
    ] = None,
    config: ConfigOption = None,
    set: SetOption = None,  # noqa: A002 - its variable is CLD_STREAM_..._SET
    json: JsonOption = False,
) -> None:
    """Print every setting as commented TOML, with the values that a new store would be trained with on this machine."""
    from cld_stream.config import as_dict, as_toml
    from cld_stream.pipelines.device import choose_device
    from cld_stream.pipelines.train import train_settings

    settings = train_settings(choose_device("auto"), config, set or [], recipe=recipe)
    if json:
        answer_json(as_dict(settings))
    else:
        answer(as_toml(settings))


def demo(
    media: Annotated[Path | None, typer.Option(help="Your own footage, instead of the photographs.")] = None,
    out: Annotated[Path, typer.Option(help="Folder for footage, store and contact sheet.")] = Path("demo-out"),
) -> None:
    """Do the whole job once: footage in, trained, queried, a picture of neighbours out."""
    from cld_stream.cli.progress import IngestDisplay, TrainDisplay
    from cld_stream.pipelines.demo import demo as run

    say = partial(console.print, markup=False, soft_wrap=True)
    made = run(out, media, say=say, ingest_display=IngestDisplay, train_display=TrainDisplay)
    answer(f"Contact sheet: {safe(made)}")
