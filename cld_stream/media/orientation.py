"""How a video's display matrix wants its frames turned: all eight ways, mirrored ones too."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["Orientation", "orientation_of"]


@dataclass(frozen=True, slots=True)
class Orientation:
    """Quarter turns, counter-clockwise, and then perhaps a reflection, that make a frame upright."""

    turns: int
    mirrored: bool

    @property
    def sideways(self) -> bool:
        """Whether width and height change places."""
        return self.turns % 2 == 1

    def upright(self, rgb: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """A stored frame (H x W x 3) as it is to be shown."""
        return self.reflected(np.rot90(rgb, self.turns))

    def reflected(self, rgb: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """A frame that is turned already, as decord's are, as it is to be shown."""
        return np.flip(rgb, axis=1 if self.sideways else 0) if self.mirrored else rgb


def orientation_of(frame: Any) -> Orientation:
    """What the display matrix [[a, b], [c, d]] of a decoded PyAV frame says; without one it is upright."""
    try:
        data = frame.side_data.get("DISPLAYMATRIX")
    except ValueError:  # PyAV 18.1 knows not all of FFmpeg's side data: EXIF in Motion JPEG
        return Orientation(round(frame.rotation / 90) % 4, mirrored=False)
    if data is None:
        return Orientation(0, mirrored=False)
    a, b, _, c, d = np.frombuffer(bytes(data), np.int32, 5).tolist()
    return Orientation(round(frame.rotation / 90) % 4, mirrored=a * d - b * c < 0)
