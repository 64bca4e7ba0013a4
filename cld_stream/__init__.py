"""cld-stream: learns features from the footage you have, for as long as you let it."""

from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"
__all__ = ["__version__", "open"]

if TYPE_CHECKING:
    from cld_stream.pipelines.api import open  # noqa: A004


def __getattr__(name: str) -> Any:
    """Load the Python interface on first use, so that `import cld_stream` stays instant."""
    if name == "open":
        from cld_stream.pipelines.api import open as open_store

        return open_store
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
