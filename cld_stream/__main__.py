"""`python -m cld_stream`, which is `cld-stream`."""

import os
import sys


def main() -> None:
    """Entry point of `cld-stream`. What takes a moment to load is loaded here, where Ctrl-C has its line."""
    try:
        from cld_stream.cli import main as run

        run()
    except KeyboardInterrupt:
        sys.stderr.write("Ended at once, as asked.\n")
        os._exit(130)


if __name__ == "__main__":
    main()
