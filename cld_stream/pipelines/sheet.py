"""The answer as a picture: a contact sheet, or a page. Every picture is shown in its true shape."""

import base64
import html
import io
import math
import os
from collections.abc import Sequence
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from cld_stream.errors import UsageError
from cld_stream.media.frames import moment
from cld_stream.pipelines.neighbours import Hit
from cld_stream.pipelines.query import Answer
from cld_stream.storage.durable import stays
from cld_stream.storage.store import Store

__all__ = ["as_shown", "write_page", "write_sheet"]

GONE = "picture gone"
"""Shown for a frame that the store dropped to make room."""

MOST = 240
"""Neighbours drawn; further ones are counted only."""

_CELL, _BOX, _CAPTION, _GAP, _MARGIN = 236, 177, 62, 20, 36
_QUERY = 330
_PAPER, _PANEL, _INK, _SOFT, _ACCENT = "#ffffff", "#f1f2f4", "#16181d", "#6b7280", "#1f6feb"
_FADED = "#d7dae0"
_LONGEST = 100.0  # times as wide as high, or as high as wide; a file may claim more, and that takes memory


def as_shown(jpeg: bytes, aspect: float, fit: str) -> Image.Image:
    """A stored frame with its stretch undone, or its padding removed; as large as it is stored, or larger."""
    frame = Image.open(io.BytesIO(jpeg)).convert("RGB")
    side = frame.width
    aspect = min(_LONGEST, max(1 / _LONGEST, aspect))
    if fit == "pad":
        w, h = max(1, round(side * min(aspect, 1.0))), max(1, round(side / max(aspect, 1.0)))
        return frame.crop(((side - w) // 2, (side - h) // 2, (side - w) // 2 + w, (side - h) // 2 + h))
    if fit == "crop":
        return frame
    return frame.resize((max(1, round(side * max(aspect, 1.0))), max(1, round(side / min(aspect, 1.0)))))


def write_sheet(store: Store, answer: Answer, path: Path) -> None:
    """A PNG: the question on the left, its neighbours beside it by rank.

    Raises:
        UsageError: the file cannot be written.
    """
    hits = answer.hits[:MOST]
    columns = max(1, min(len(hits), min((5, 4), key=lambda c: -len(hits) % c)))  # the fuller last row
    rows = max(1, -(-len(hits) // columns))
    height = max(rows * (_BOX + _CAPTION + _GAP) - _GAP, _QUERY + 130)
    width = 2 * _MARGIN + _QUERY + 2 * _GAP + columns * (_CELL + _GAP)
    sheet = Image.new("RGB", (width, height + 2 * _MARGIN), _PAPER)
    draw = ImageDraw.Draw(sheet)
    fit = store.header.fit
    _draw_question(sheet, draw, answer, fit, len(answer.hits) - len(hits))
    left = _MARGIN + _QUERY + 2 * _GAP
    draw.line((left - 1, _MARGIN, left - 1, _MARGIN + height), _FADED)
    left += _GAP
    for n, (hit, jpeg) in enumerate(zip(hits, _jpegs(store, hits), strict=True)):
        x = left + n % columns * (_CELL + _GAP)
        y = _MARGIN + n // columns * (_BOX + _CAPTION + _GAP)
        _panel(sheet, draw, (x, y, _CELL, _BOX), jpeg, hit.aspect, fit)
        _draw_caption(draw, hit, x, y + _BOX + 8)
    buffer = io.BytesIO()
    sheet.save(buffer, "PNG")
    _write(path, buffer.getvalue(), "--sheet")


def write_page(store: Store, answer: Answer, path: Path) -> None:
    """A standalone page: the pictures are inside, nothing is loaded from anywhere.

    Raises:
        UsageError: the file cannot be written.
    """
    hits, fit, question = answer.hits[:MOST], store.header.fit, answer.question
    more = len(answer.hits) - len(hits)
    cells = "\n".join(_cell(hit, jpeg, fit) for hit, jpeg in zip(hits, _jpegs(store, hits), strict=True))
    asked = _figure(question.jpeg, question.aspect, fit) if question.jpeg else ""  # its title says why
    page = _PAGE.format(
        title=_text(question.title),
        asked=asked,
        about=_text(f"{len(answer.hits)} neighbours in {answer.store}"),
        snapshot=_text(f"snapshot {answer.snapshot}, space {answer.space}"),
        cells=cells or "<p>No stored frame passes the filters.</p>",
        more=f"<p>and {more} more</p>" if more else "",
    )
    _write(path, page.encode("utf-8", "replace"), "--html")


def _draw_question(sheet: Image.Image, draw: ImageDraw.ImageDraw, answer: Answer, fit: str, more: int) -> None:
    question, y = answer.question, _MARGIN
    draw.text((_MARGIN, y), "QUERY", _ACCENT, _font(15))
    y += 28
    if question.jpeg:
        picture = as_shown(question.jpeg, question.aspect, fit)
        scale = _QUERY / max(picture.size)
        size = max(1, round(picture.width * scale)), max(1, round(picture.height * scale))
        picture = picture.resize(size, Image.Resampling.LANCZOS)
        sheet.paste(picture, (_MARGIN, y))
        y += picture.height + 14
    for line in _lines(draw, _plain(question.title), _font(20), _QUERY, 3):
        draw.text((_MARGIN, y), line, _INK, _font(20))
        y += 26
    y += 6
    count = f"{len(answer.hits)} neighbours" + (f", the last {more} not shown" if more else "")
    for line in (count if answer.hits else "no stored frame passes the filters", f"space {answer.space}",
                 f"snapshot {answer.snapshot}"):  # fmt: skip
        draw.text((_MARGIN, y), _short(draw, line, _font(15), _QUERY), _SOFT, _font(15))
        y += 22


def _draw_caption(draw: ImageDraw.ImageDraw, hit: Hit, x: int, y: int) -> None:
    draw.text((x, y), f"{hit.rank}", _INK, _font(18))
    score = f"{hit.similarity:.3f}"
    draw.text((x + _CELL - draw.textlength(score, _font(18)), y), score, _ACCENT, _font(18))
    draw.text((x, y + 23), _short(draw, _name(hit), _font(14), _CELL), _SOFT, _font(14))
    draw.text((x, y + 41), _moment(hit), _SOFT, _font(14))


def _panel(
    sheet: Image.Image,
    draw: ImageDraw.ImageDraw,
    box: tuple[int, int, int, int],
    jpeg: bytes,
    aspect: float,
    fit: str,
) -> None:
    """A picture as large as fits, in the middle of its panel."""
    x, y, w, h = box
    draw.rounded_rectangle((x, y, x + w - 1, y + h - 1), 6, _PANEL)
    if jpeg:
        picture = as_shown(jpeg, aspect, fit)
        scale = min(w / picture.width, h / picture.height)
        size = max(1, round(picture.width * scale)), max(1, round(picture.height * scale))
        picture = picture.resize(size, Image.Resampling.LANCZOS)
        sheet.paste(picture, (x + (w - size[0]) // 2, y + (h - size[1]) // 2))
    else:
        draw.text((x + w // 2, y + h // 2), GONE, _SOFT, _font(14), anchor="mm")


def _jpegs(store: Store, hits: Sequence[Hit]) -> list[bytes]:
    with store.reader(1, on_damage=lambda _: None) as reader:
        return reader.jpegs([hit.frame for hit in hits])


def _name(hit: Hit) -> str:
    return _plain(Path(hit.source).name)


def _plain(text: str) -> str:
    return "".join(c if c.isprintable() else "?" for c in text)


def _text(text: str) -> str:
    """As text in a page."""
    return html.escape(_plain(text))


def _moment(hit: Hit) -> str:
    """Position in the source, and when it was taken; an older store may hold what is in no calendar."""
    minutes, seconds = divmod(hit.time_s, 60)
    at = f"{int(minutes)}:{seconds:04.1f}" if math.isfinite(hit.time_s) else ""
    taken = moment(hit.wall_utc)
    return at if taken is None else f"{at}   {datetime.fromtimestamp(taken, UTC):%Y-%m-%d %H:%M}"


def _font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(size)


def _short(draw: ImageDraw.ImageDraw, text: str, font: ImageFont.FreeTypeFont | ImageFont.ImageFont, width: int) -> str:
    """The text, its middle left out where it is too wide."""
    keep = len(text)
    short = text
    while keep > 4 and draw.textlength(short, font) > width:
        keep -= 1
        short = f"{text[: keep // 2]}...{text[len(text) - keep + keep // 2 :]}"
    return short


def _lines(
    draw: ImageDraw.ImageDraw,
    text: str,
    font: ImageFont.FreeTypeFont | ImageFont.ImageFont,
    width: int,
    most: int,
) -> list[str]:
    """The text broken at spaces; what does not fit in a line is shortened."""
    lines: list[str] = []
    for word in text.split():
        if lines and draw.textlength(f"{lines[-1]} {word}", font) <= width:
            lines[-1] += f" {word}"
        else:
            lines.append(word)
    return [_short(draw, line, font, width) for line in lines[:most]]


def _figure(jpeg: bytes, aspect: float, fit: str) -> str:
    """An <img> of the stored frame; the page undoes the stretch."""
    shape = 1.0 if fit == "crop" else aspect
    cover = "cover" if fit == "pad" else "fill"
    data = base64.b64encode(jpeg).decode()
    return (
        f'<img alt="" src="data:image/jpeg;base64,{data}" '
        f'style="aspect-ratio:{shape:.4f};object-fit:{cover};{"width" if shape >= 4 / 3 else "height"}:100%">'
    )


def _cell(hit: Hit, jpeg: bytes, fit: str) -> str:
    picture = _figure(jpeg, hit.aspect, fit) if jpeg else f"<span>{GONE}</span>"
    return (
        f'<figure><div class="box">{picture}</div><figcaption>'
        f"<b>{hit.rank}</b><em>{hit.similarity:.3f}</em>"
        f'<span title="{_text(hit.source)}">{_text(_name(hit))}</span>'
        f"<span>{_moment(hit)} &middot; frame {hit.frame}</span></figcaption></figure>"
    )


def _write(path: Path, data: bytes, option: str) -> None:
    if not path.name or path.is_dir():
        raise UsageError(f"{option} {path}: this is a folder. Name a file in it.")
    aside = path.with_name(f".{path.name}.tmp")
    try:
        if stays(path):
            path.write_bytes(data)
        else:
            aside.write_bytes(data)
            os.replace(aside, path)  # noqa: PTH105
    except OSError as e:
        with suppress(OSError):
            aside.unlink()
        raise UsageError(
            f"{option} {path}: cannot write it: {e.strerror}. Choose a file in a folder that exists."
        ) from None


_PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width">
<title>{title}</title>
<style>
body {{ margin: 0; padding: 2rem; font: 15px/1.45 system-ui, sans-serif; color: #16181d; background: #fff;
  display: grid; grid-template-columns: 20rem 1fr; gap: 2.5rem; }}
aside {{ position: sticky; top: 2rem; align-self: start; }}
aside .box {{ background: none; aspect-ratio: auto; height: auto; max-height: 20rem; justify-content: start; }}
aside .box img {{ max-height: 20rem; }}
h1 {{ font-size: 1.2rem; margin: 1rem 0 .5rem; overflow-wrap: anywhere; }}
aside p {{ margin: .2rem 0; color: #6b7280; overflow-wrap: anywhere; }}
main {{ display: grid; grid-template-columns: repeat(auto-fill, minmax(14rem, 1fr)); gap: 1.5rem; }}
figure {{ margin: 0; min-width: 0; }}
.box {{ aspect-ratio: 4 / 3; background: #f1f2f4; border-radius: 6px; overflow: hidden; display: flex;
  align-items: center; justify-content: center; }}
.box span {{ color: #6b7280; }}
.box img {{ display: block; max-width: 100%; max-height: 100%; }}
figcaption {{ display: grid; grid-template-columns: 1fr auto; margin-top: .4rem; }}
figcaption em {{ font-style: normal; color: #1f6feb; }}
figcaption span {{ grid-column: 1 / 3; color: #6b7280; font-size: .87rem; overflow: hidden; white-space: nowrap;
  text-overflow: ellipsis; }}
@media (max-width: 50rem) {{ body {{ grid-template-columns: 1fr; }} aside {{ position: static; }} }}
</style></head><body>
<aside><div class="box">{asked}</div><h1>{title}</h1><p>{about}</p><p>{snapshot}</p>{more}</aside>
<main>
{cells}
</main></body></html>
"""
