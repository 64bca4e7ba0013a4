"""`cld-stream snapshot` and `snapshots`: published encoders."""

from typing import Annotated

import typer

from cld_stream.cli.options import DEFAULT_STORE, DeviceOption, JsonOption, StoreOption
from cld_stream.cli.output import answer, answer_json


def add_to(app: typer.Typer) -> None:
    """Register the commands of this file."""
    app.command(epilog="Example: cld-stream snapshot")(snapshot)
    app.command(epilog="Example: cld-stream snapshots --pin 20260101-120000-000500")(snapshots)


def snapshot(
    store: StoreOption = DEFAULT_STORE,
    force: Annotated[
        bool,
        typer.Option("--force", help="Publish also what is older than the latest, untrained, or held by the guard."),
    ] = False,
    device: DeviceOption = "auto",
    json: JsonOption = False,
) -> None:
    """Publish the encoder of the newest checkpoint now, with the features of every stored frame."""
    from cld_stream.pipelines.device import choose_device
    from cld_stream.pipelines.publish_checkpoint import publish_checkpoint

    made = publish_checkpoint(store, device=choose_device(device), force=force)
    if json:
        answer_json({"snapshot": made.id, "frames": made.frames})
    else:
        answer(f"Published {made.id}: features of {made.frames:,} frames.")


def snapshots(
    store: StoreOption = DEFAULT_STORE,
    pin: Annotated[str | None, typer.Option(help="Keep this snapshot for ever.")] = None,
    unpin: Annotated[str | None, typer.Option(help="Let this snapshot be pruned.")] = None,
    prune: Annotated[
        int | None, typer.Option(help="Keep this many newest and the pinned; delete the rest.", min=1)
    ] = None,
    json: JsonOption = False,
) -> None:
    """List the published snapshots; pin, unpin or prune them."""
    from cld_stream.cli.tables import print_table, when
    from cld_stream.pipelines.snapshots import change_snapshots, list_snapshots

    change_snapshots(store, pin=pin, unpin=unpin, prune=prune)
    rows = list_snapshots(store)
    if json:
        answer_json([row.as_dict() for row in rows])
        return
    latest = next((r.id for r in reversed(rows) if r.state == "current"), "")
    print_table(
        ("snapshot", "published", "step>", "frames>", "encoder", "pinned", "state"),
        [(r.id, when(r.created_utc), r.step, f"{r.frames:,}", r.encoder[:12], "pinned" if r.pinned else "",
          "latest" if r.id == latest else r.state)
         for r in rows],
    )  # fmt: skip
