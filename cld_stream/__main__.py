"""`python -m cld_stream` is `cld-stream`."""

from cld_stream.cli import main

if __name__ == "__main__":
    main()
