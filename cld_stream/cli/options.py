"""Options that several commands share, so that each is spelt and explained once."""

from pathlib import Path
from typing import Annotated

import typer

StoreOption = Annotated[
    Path,
    typer.Option("--store", envvar="CLD_STREAM_STORE", help="The store; a folder.", show_default=True),
]
ConfigOption = Annotated[
    Path | None,
    typer.Option("--config", help="Settings as TOML; `cld-stream config` prints every one."),
]
RecipeOption = Annotated[
    str | None,
    typer.Option("--recipe", help="Packaged settings under --config and --set, for example moco-cld-32.",
                 show_default="stream, in the size of the device"),
]  # fmt: skip
SetOption = Annotated[
    list[str] | None,
    typer.Option("--set", help="One setting, for example optim.lr=0.03; may be repeated.", metavar="SECTION.KEY=VALUE"),
]
JsonOption = Annotated[bool, typer.Option("--json", help="Answer as JSON on stdout.")]
PortOption = Annotated[
    int | None,
    typer.Option("--port", help="Answer /healthz, /readyz and /metrics on this port of 127.0.0.1.", min=0, max=65_535),
]
DeviceOption = Annotated[str, typer.Option("--device", help="auto, cpu, cuda or cuda:N.")]

DEFAULT_STORE = Path("cld-store")
