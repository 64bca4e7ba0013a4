"""The command line: parses, calls one pipeline function, prints."""

import atexit
import gc
import os
import re
import sys
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

import cld_stream
from cld_stream.cli import evaluate, ingest, manage, query, snapshots, train, tune
from cld_stream.cli.output import (
    console,
    escape_what_cannot_be_encoded,
    fail,
    finish_answer,
    set_up_logging,
    work_without_readers,
)
from cld_stream.errors import CldError, UsageError


class _Commands(TyperGroup):
    """With `--json-logs` what the option parser refuses is a log line too, not a box."""

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except Exception as e:
            said = getattr(e, "format_message", None)  # the parser's errors alone have it
            if said is None or not ctx.params["json_logs"]:
                raise
            set_up_logging(0, debug=False, as_json=True)
            raise UsageError(f"{said().rstrip('.')}. See --help.") from None


app = typer.Typer(
    name="cld-stream",
    cls=_Commands,
    help="Learn features from the footage you have: ingest a folder, keep a trainer running, find neighbours.",
    epilog="Start here: cld-stream ingest ~/Videos && cld-stream train --until-caught-up && cld-stream query photo.jpg",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"auto_envvar_prefix": "CLD_STREAM", "help_option_names": ["-h", "--help"]},
)
for module in (ingest, train, query, snapshots, evaluate, tune, manage):
    module.add_to(app)

_debug = False
_ANYWHERE = re.compile(r"--verbose|-v+|--quiet|-q|--debug")


def _show_version(value: bool) -> None:
    if value:
        sys.stdout.write(f"cld-stream {cld_stream.__version__}\n")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[  # noqa: ARG001 - answered by its callback
        bool,
        typer.Option(
            "--version", help="Print the version.", callback=_show_version, is_eager=True, allow_from_autoenv=False
        ),
    ] = False,
    verbose: Annotated[int, typer.Option("--verbose", "-v", count=True, help="More log lines; twice for all.")] = 0,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="No progress, only answers and errors.")] = False,
    json_logs: Annotated[bool, typer.Option("--json-logs", help="Progress, log and errors as JSON lines.")] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Trace: every log line, and tracebacks of errors.")] = False,
) -> None:
    global _debug
    _debug = debug
    console.quiet = quiet
    set_up_logging(verbose, debug=debug, as_json=json_logs)
    try:
        os.getcwd()  # noqa: PTH109 - as torch asks, which else ends the process
    except FileNotFoundError:
        raise UsageError("the current folder has been removed: change to one that is there first.") from None


def _flags_first(args: list[str]) -> list[str]:
    """How much is told may be said after the command too; nothing behind `--` is touched."""
    end = args.index("--") if "--" in args else len(args)
    flags = [a for a in args[:end] if _ANYWHERE.fullmatch(a)]
    return flags + [a for a in args[:end] if not _ANYWHERE.fullmatch(a)] + args[end:]


def main() -> None:
    """Run the command that `sys.argv` says. Exit codes: see `cld_stream.errors`."""
    # threads of a step that wait for each other give the core up sooner: beside other work a step takes half or less
    # (benchmarks/results/step.md)
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", "10000")
    os.environ.setdefault("PATH", os.defpath)  # decord takes it for granted
    atexit.register(gc.freeze)  # else the interpreter goes through all of torch's objects to end: a second of CPU
    work_without_readers()
    escape_what_cannot_be_encoded()
    try:
        try:
            app(_flags_first(sys.argv[1:]))
        finally:
            finish_answer()
    except CldError as e:
        if _debug:
            raise
        console.quiet = False
        fail(str(e))
        sys.exit(e.exit_code)
    except (KeyboardInterrupt, SystemExit) as e:
        if isinstance(e, SystemExit) and e.code != 130:  # with 130 Typer ends on Ctrl-C, without a word
            raise
        console.quiet = False
        fail("Ended at once, as asked. What was committed is safe; the same command goes on from there.")
        os._exit(130)
    except OSError as e:  # not foreseen, and yet the system's fault and not ours
        if _debug:
            raise
        console.quiet = False
        what = f"{e.filename}: {e.strerror}" if e.filename else str(e)
        fail(f"{what}. Check the path, its permissions and the space on its disk; --debug shows where it happened.")
        sys.exit(1)
