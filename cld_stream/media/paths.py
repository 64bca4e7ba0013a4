"""Paths as sources have them."""

import os
from pathlib import Path

__all__ = ["absolute"]


def absolute(path: str | Path) -> Path:
    """The whole path, without `.` and `..`; links are kept as named."""
    return Path(os.path.normpath(os.path.abspath(path)))  # noqa: PTH100 - follows no link
