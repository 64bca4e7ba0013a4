"""`cld-stream query`: neighbours out."""

from pathlib import Path
from typing import Annotated

import typer

from cld_stream.cli.options import DEFAULT_STORE, JsonOption, StoreOption
from cld_stream.cli.output import answer_json, console, safe


def add_to(app: typer.Typer) -> None:
    """Register the commands of this file."""
    app.command(epilog="Example: cld-stream query photo.jpg -k 12 --distinct-s 10 --sheet out.png")(query)


def query(
    picture: Annotated[Path | None, typer.Argument(help="A picture file.")] = None,
    store: StoreOption = DEFAULT_STORE,
    frame: Annotated[int | None, typer.Option(help="Ask by a stored frame's id.")] = None,
    source: Annotated[
        str | None, typer.Option(help="Ask by a source (path, unique end of it, or id) and --at.")
    ] = None,
    at: Annotated[float | None, typer.Option(help="Position in --source, in seconds.")] = None,
    vector: Annotated[Path | None, typer.Option(help="Ask by a vector in a .npy file.")] = None,
    k: Annotated[int, typer.Option("-k", help="Neighbours wanted.", min=1, max=100_000)] = 12,
    snapshot: Annotated[str, typer.Option(help="Snapshot id.")] = "latest",
    space: Annotated[str, typer.Option(help="instance, group or backbone.")] = "instance",
    distinct_s: Annotated[float, typer.Option("--distinct-s", help="One hit per source within so many seconds.")] = 0.0,
    under: Annotated[str | None, typer.Option(help="Only sources under this path.")] = None,
    after: Annotated[str | None, typer.Option(help="Only frames taken after this time (ISO 8601).")] = None,
    before: Annotated[str | None, typer.Option(help="Only frames taken before this time (ISO 8601).")] = None,
    sheet: Annotated[Path | None, typer.Option(help="Write a contact sheet (PNG).")] = None,
    html: Annotated[Path | None, typer.Option(help="Write a page (HTML).")] = None,
    json: JsonOption = False,
) -> None:
    """Find the stored frames nearest to a picture, a frame, a moment of a source, or a vector."""
    from cld_stream.pipelines.query import query as run

    answer = run(
        store, picture=picture, frame=frame, source=source, at=at, vector=vector, k=k, snapshot=snapshot, space=space,
        distinct_s=distinct_s, under=under, after=after, before=before, sheet=sheet, html=html,
    )  # fmt: skip
    if json:
        answer_json(answer.as_dict())
        return
    from cld_stream.cli.tables import print_hits

    if answer.hits:
        print_hits(answer.hits)
    else:
        console.print("No stored frame fits.")
    for made in (sheet, html):
        if made:
            console.print(f"Wrote {safe(made)}")
