"""Find the stored frames nearest to a picture, a frame, a moment of a source, or a vector."""

import math
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from cld_stream.errors import StoreNotFoundError, UsageError
from cld_stream.pipelines.neighbours import Filters, Hit, Searcher
from cld_stream.pipelines.snapshots import with_snapshot
from cld_stream.pipelines.sources import find_source
from cld_stream.storage.snapshots import SPACES, Snapshot
from cld_stream.storage.store import Store

if TYPE_CHECKING:
    from cld_stream.media.frames import MediaFrame
    from cld_stream.storage.header import Header

__all__ = ["Answer", "Question", "ask", "query", "read_picture", "stored_feature"]


@dataclass(frozen=True)
class Question:
    """What was asked.

    Attributes:
        title: in words.
        jpeg, aspect: the picture as a stored frame, and its width / height as shown; None for a vector.
    """

    title: str
    jpeg: bytes | None = None
    aspect: float = 1.0


@dataclass(frozen=True)
class Answer:
    """The neighbours.

    Attributes:
        question: what was asked.
        store: path of the store.
        snapshot, space: which features were compared.
        hits: nearest first.
    """

    question: Question
    store: str
    snapshot: str
    space: str
    hits: list[Hit]

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        about = {"query": self.question.title, "store": self.store, "snapshot": self.snapshot, "space": self.space}
        return about | {"hits": [asdict(hit) for hit in self.hits]}


def query(
    store: Path,
    *,
    picture: Path | None = None,
    frame: int | None = None,
    source: str | None = None,
    at: float | None = None,
    vector: Path | None = None,
    k: int = 12,
    snapshot: str = "latest",
    space: str = "instance",
    distinct_s: float = 0.0,
    under: str | None = None,
    after: str | float | None = None,
    before: str | float | None = None,
    sheet: Path | None = None,
    html: Path | None = None,
    device: str = "cpu",
) -> Answer:
    """Answer one question and, if asked, draw the answer.

    Exactly one of `picture`, `frame`, `source` with `at`, and `vector` (a .npy file) is given.

    Args:
        k: neighbours wanted, >= 1.
        snapshot: an id, its unique beginning, or `latest`.
        space: `instance`, `group` or `backbone`.
        distinct_s, under: see `Filters`.
        after, before: ISO 8601 (UTC unless it says otherwise), or seconds since 1970.
        sheet, html: where to write a contact sheet (PNG) and a page.
        device: where a picture is embedded.

    Raises:
        UsageError: not exactly one question, or one that cannot be answered.
        StoreNotFoundError: there is no store, snapshot, source or frame of that name.
    """
    asked = [name for name, value in _asked(picture, frame, source, vector).items() if value is not None]
    if len(asked) != 1:
        given = f"got {' and '.join(asked)}" if asked else "got none"
        raise UsageError(f"ask by exactly one of PICTURE, --frame, --source with --at, or --vector; {given}")
    if (source is None) != (at is None):
        raise UsageError("--source and --at belong together: --source FILE --at SECONDS")
    if at is not None and not 0 <= at < math.inf:
        raise UsageError(f"--at {at}: expected a time in the source, in seconds from its start (0 or more)")
    if space not in SPACES:
        raise UsageError(f"--space {space}: expected one of {', '.join(SPACES)}")
    if k < 1:
        raise UsageError(f"-k must be at least 1, got {k}")
    filters = Filters(distinct_s, under, parse_time("--after", after), parse_time("--before", before))
    values = None if vector is None else read_vector(vector)
    with Store.open(store) as opened:
        if source is not None and at is not None:
            frame = opened.catalog.frame_at(find_source(opened.catalog, source).id, at)

        def answered(chosen: Snapshot) -> Answer:
            searcher = Searcher(opened, chosen, space)
            question, asked = ask(opened, chosen, searcher, picture, frame, values, space, device)
            return Answer(question, str(store), chosen.id, space, searcher.find(asked, k, filters))

        answer = with_snapshot(opened, snapshot, answered)
        if sheet is not None or html is not None:
            from cld_stream.pipelines.sheet import write_page, write_sheet

            if sheet is not None:
                write_sheet(opened, answer, sheet)
            if html is not None:
                write_page(opened, answer, html)
        return answer


def ask(
    store: Store,
    snapshot: Snapshot,
    searcher: Searcher,
    picture: Path | None,
    frame: int | None,
    vector: NDArray[Any] | None,
    space: str,
    device: str,
) -> tuple[Question, NDArray[Any]]:
    """The question and its vector, whichever way it was asked."""
    if vector is not None:
        return Question(f"a vector of {vector.size} numbers"), vector
    if frame is not None:
        return stored_feature(store, searcher, frame)
    from cld_stream.pipelines.embed import Embedder

    assert picture is not None
    question, pixels = read_picture(store, picture)
    shape = np.array([question.aspect], np.float32)
    return question, Embedder.of(snapshot, device).embed(pixels[None], shape)[space][0]


def stored_feature(store: Store, searcher: Searcher, frame: int) -> tuple[Question, NDArray[np.float16]]:
    """A stored frame as a question.

    Raises:
        StoreNotFoundError: it never was, is gone, or has no features yet.
    """
    if not 0 <= frame < store.catalog.next_id():
        raise StoreNotFoundError(f"{store.path}: no frame {frame}; ids run from 0 to {store.catalog.next_id() - 1}.")
    rows, dropped = store.catalog.known([frame])
    if not len(rows):  # who was dropped is forgotten with the last snapshot that names it
        raise StoreNotFoundError(
            f"{store.path}: frame {frame} was forgotten, or dropped to stay within limits; its id is never used again."
        )
    feature = searcher.feature(frame)
    if feature is None and dropped[0]:
        raise StoreNotFoundError(
            f"{store.path}: frame {frame} was dropped to stay within limits, and has no features in this snapshot. "
            "`cld-stream snapshots` shows older ones, for --snapshot."
        )
    if feature is None:
        raise StoreNotFoundError(
            f"{store.path}: frame {frame} has no features in this snapshot yet. A running `cld-stream train` adds "
            "them within a minute; `cld-stream snapshot` does it now."
        )
    if not feature.any():  # overwritten, and its row goes next
        raise StoreNotFoundError(f"{store.path}: frame {frame} is being forgotten.")
    with store.reader(1, on_damage=lambda _: None) as reader:
        jpeg = reader.jpegs([frame])[0] or None
    path = store.catalog.source(int(rows.source[0])).path
    title = f"frame {frame} of {Path(path).name} at {float(rows.time_s[0]):.1f} s" + (
        "" if jpeg else " (its picture is gone)"
    )
    return Question(title, jpeg, float(rows.aspect[0])), feature


def read_picture(store: Store, path: Path) -> tuple[Question, NDArray[np.uint8]]:
    """A picture file, made into a frame exactly as ingest would, by a worker process that ends with it.

    Returns:
        The question, and S x S x 3 pixels.

    Raises:
        UsageError: there is no such file, or no picture in it.
    """
    import simplejpeg

    if not path.exists():
        raise UsageError(f"{path}: there is no such file. Give a picture, or ask by --frame, --source or --vector.")
    if path.is_dir():
        raise UsageError(f"{path}: this is a folder. Give one picture.")
    if not path.is_file():
        raise UsageError(f"{path}: this is not a file. Give a picture file.")
    frame = _decoded(store.header, path)
    return Question(path.name, frame.jpeg, frame.aspect), simplejpeg.decode_jpeg(frame.jpeg, "RGB")


def _decoded(header: "Header", path: Path) -> "MediaFrame":
    """The first page of a picture; its bytes are not trusted, and only a confined worker looks at them."""
    from cld_stream.config import IngestSettings
    from cld_stream.media.job import Chunk, Done, Job
    from cld_stream.media.pool import DecodePool

    settings, reason = IngestSettings(), ""
    job = Job(
        key=0, kind="still", path=path, size=header.size, fit=header.fit, quality=header.jpeg_quality,
        max_pixels=settings.max_pixels,
    )  # fmt: skip
    with DecodePool(1, settings) as pool:
        for _, event in pool.run([job]):
            if isinstance(event, Chunk):
                return event.frames[0]
            if isinstance(event, Done):
                too_large = f"it has more than {settings.max_pixels:,} pixels"
                reason = too_large if event.outcome == "SKIPPED" else event.reason
    raise UsageError(
        f"{path}: not a picture that can be read ({reason}). "
        "Ask by --source FILE --at SECONDS for a moment of a video that was ingested."
    )


def read_vector(path: Path) -> NDArray[Any]:
    """One vector from a .npy file.

    Raises:
        UsageError: there is no such file, or not exactly one vector of numbers in it.
    """
    if path.exists() and not path.is_file():
        raise UsageError(f"--vector {path}: not a file. Write one with numpy.save.")
    try:
        with path.open("rb") as file:
            values = np.load(file, allow_pickle=False)
    except FileNotFoundError:
        raise UsageError(f"--vector {path}: there is no such file") from None
    except Exception:  # noqa: BLE001 - a damaged header, or half an archive, can make numpy raise anything
        raise UsageError(f"--vector {path}: not a .npy file of numbers. Write one with numpy.save.") from None
    if (
        not isinstance(values, np.ndarray)
        or values.dtype.kind not in "fiu"
        or values.size != max(values.shape, default=0)
    ):
        shape = getattr(values, "shape", "an archive")
        raise UsageError(f"--vector {path}: expected one vector of numbers, got {shape}. Save a single row.")
    return values.reshape(-1)


def parse_time(name: str, value: str | float | None) -> float | None:
    """Seconds since 1970, of a number or of ISO 8601.

    Raises:
        UsageError: it is neither.
    """
    if value is None or isinstance(value, int | float):
        return None if value is None else float(value)
    try:
        moment = datetime.fromisoformat(value)
    except ValueError:
        raise UsageError(f"{name} {value}: not a time. Write 2026-01-31 or 2026-01-31T14:30:00+01:00") from None
    return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()


def _asked(*values: object) -> dict[str, object]:
    return dict(zip(("PICTURE", "--frame", "--source", "--vector"), values, strict=True))
