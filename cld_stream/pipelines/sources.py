"""Sources as a person names them: as ingested, or as a path from here."""

from cld_stream.errors import StoreNotFoundError
from cld_stream.media.address import masked
from cld_stream.media.paths import absolute
from cld_stream.storage import finding
from cld_stream.storage.catalog import Catalog
from cld_stream.storage.schema import SourceRow

__all__ = ["find_source", "sources_under"]


def find_source(catalog: Catalog, text: str) -> SourceRow:
    """The source that a person means: an id, a path, a camera's address, or the end of one path only.

    Raises:
        StoreNotFoundError: none fits, or several do; names them.
    """
    text = masked(text)
    try:
        return catalog.find_source(text)
    except StoreNotFoundError:
        here = catalog.source_by_path(str(absolute(text))) if text else None
        if here is None:
            raise
        return here


def sources_under(catalog: Catalog, path: str) -> list[SourceRow]:
    """Sources that are this file or camera, or lie in this folder."""
    return finding.sources_under(catalog, masked(path), str(absolute(path)))
