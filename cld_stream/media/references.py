"""Which coded pictures no other one refers to, told from the first bytes of a packet: these may be left undecoded."""

from collections.abc import Callable, Iterable
from typing import Any

__all__ = ["reference_test"]


def reference_test(context: Any) -> Callable[[Any], bool]:
    """A function that says of a packet whether other frames may refer to it; where that is not known: yes.

    Args:
        context: the codec context of its stream.
    """
    extra = context.extradata or b""
    prefixed = extra[:1] == b"\x01"
    if context.name == "h264":
        width = (extra[4] & 3) + 1 if prefixed and len(extra) > 4 else 0
        return lambda packet: _h264_referenced(memoryview(packet), width)
    if context.name == "hevc":
        width = (extra[21] & 3) + 1 if prefixed and len(extra) > 21 else 0
        return lambda packet: _hevc_referenced(memoryview(packet), width)
    return lambda _: True


def _h264_referenced(data: memoryview, width: int) -> bool:
    """nal_ref_idc of the first slice (ITU-T H.264, 7.4.1)."""
    for first in _units(data, width):
        if 1 <= first & 0x1F <= 5:
            return first & 0x60 != 0
    return True


def _hevc_referenced(data: memoryview, width: int) -> bool:
    """Even slice types up to 14 are sub-layer non-reference pictures (ITU-T H.265, table 7-1)."""
    for first in _units(data, width):
        kind = first >> 1 & 0x3F
        if kind < 32:
            return kind > 14 or kind % 2 == 1
    return True


def _units(data: memoryview, width: int) -> Iterable[int]:
    """First byte of each NAL unit: length-prefixed (MP4, Matroska), or after start codes (width 0)."""
    at = 0
    if width == 0:
        head = bytes(data[:4096])
        while (at := head.find(b"\0\0\1", at)) >= 0 and at + 3 < len(head):
            yield head[at + 3]
            at += 3
        return
    while at + width < len(data):
        length = int.from_bytes(data[at : at + width], "big")
        yield data[at + width]
        at += width + length
