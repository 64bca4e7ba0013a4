"""`cld-stream ingest`: footage in."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cld_stream.cli.options import DEFAULT_STORE, ConfigOption, JsonOption, PortOption, SetOption, StoreOption
from cld_stream.cli.output import answer_json, answer_line, console
from cld_stream.cli.stopping import StopSignals
from cld_stream.errors import UsageError

if TYPE_CHECKING:
    from cld_stream.config import Settings


def add_to(app: typer.Typer) -> None:
    """Register the commands of this file."""
    app.command(epilog="Example: cld-stream ingest ~/Videos ~/Pictures --fps 1 --watch")(ingest)


def ingest(
    paths: Annotated[
        list[str],
        typer.Argument(
            help="Folders, files, frame folders, @list.txt, @list.tsv; cameras: rtsp://..., /dev/video0.",
            metavar="PATH...",
        ),
    ],
    store: StoreOption = DEFAULT_STORE,
    fps: Annotated[float | None, typer.Option(help="Frames kept per second of video.", show_default="2")] = None,
    size: Annotated[int | None, typer.Option(help="Side of a stored frame, at creation.", show_default="160")] = None,
    fit: Annotated[str | None, typer.Option(help="stretch, crop or pad, at creation.", show_default="stretch")] = None,
    workers: Annotated[int | None, typer.Option(help="Decoding processes.", show_default="one a core")] = None,
    reader: Annotated[str | None, typer.Option(help="auto, decord or pyav.", show_default="auto")] = None,
    order: Annotated[str | None, typer.Option(help="Stream order: time or path.", show_default="time")] = None,
    watch: Annotated[
        bool, typer.Option("--watch", help="Do not end: take what comes into the folders. Always so with a camera.")
    ] = False,
    max_frames: Annotated[int | None, typer.Option(help="Drop the oldest frames beyond this many.")] = None,
    max_gb: Annotated[float | None, typer.Option(help="Drop the oldest frames when all take more than this.")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would be done; write nothing.")] = False,
    strict: Annotated[bool, typer.Option("--strict", help="Exit 4 if any file was broken.")] = False,
    retry_broken: Annotated[bool, typer.Option("--retry-broken", help="Try broken and partial files again.")] = False,
    port: PortOption = None,
    config: ConfigOption = None,
    set: SetOption = None,  # noqa: A002 - its variable is CLD_STREAM_..._SET
    json: JsonOption = False,
) -> None:
    """Decode videos and photos into the frame store. Run it again for what is new; interrupt it at any time."""
    with StopSignals() as stop:  # the imports take a moment
        from cld_stream.cli.progress import IngestDisplay, print_ingest_summary
        from cld_stream.config import load_settings
        from cld_stream.pipelines.ingest import ingest as run
        from cld_stream.pipelines.ingest import require_shape
        from cld_stream.pipelines.report import IngestReport, WatchReport
        from cld_stream.pipelines.watch import must_watch

        flags = {
            "ingest.fps": fps, "store.size": size, "store.fit": fit, "ingest.workers": workers,
            "ingest.reader": reader, "ingest.order": order, "ops.port": port,
            "ingest.max_frames": max_frames, "ingest.max_gb": max_gb,
        }  # fmt: skip
        chosen = [f"{key}={value}" for key, value in flags.items() if value is not None]
        settings = load_settings(config, [*(set or []), *chosen])
        require_shape(store, size=size, fit=fit)
        watches = watch or must_watch(paths)
        if watches and (dry_run or strict):
            raise UsageError("--dry-run and --strict are for a run that ends: leave them out, or --watch and cameras.")
        if stop():
            console.print("Stopped before anything was read.")
            if json and watches:
                answer_line(WatchReport(str(store)).as_dict())
            elif json:
                answer_json(IngestReport(str(store), stopped=True, dry_run=dry_run, strict=strict).as_dict())
            return
        if watches:
            _watch(store, paths, settings, stop, retry_broken=retry_broken, json=json)
            return
        with IngestDisplay() as display:
            report = run(
                Path(store), paths, settings,
                dry_run=dry_run, strict=strict, retry_broken=retry_broken, on_progress=display, stop=stop,
            )  # fmt: skip
    if json:
        answer_json(report.as_dict())
    else:
        print_ingest_summary(report, dry_run=dry_run)
    report.raise_if_strict()


def _watch(
    store: Path, paths: list[str], settings: "Settings", stop: StopSignals, *, retry_broken: bool, json: bool
) -> None:
    from cld_stream.cli.progress import WatchDisplay, print_watch_summary
    from cld_stream.pipelines.watch import watch as run

    with WatchDisplay() as display:
        report = run(
            store, paths, settings, retry_broken=retry_broken, stop=stop, on_progress=display,
            on_event=lambda event: answer_line(event.as_dict(), may_be_lost=True) if json else display.tell(event),
        )  # fmt: skip
    if json:
        answer_line(report.as_dict())
    else:
        print_watch_summary(report)
