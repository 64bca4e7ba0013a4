"""Frames to features, with the weights of a published encoder."""

from collections.abc import Mapping
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray

from cld_stream.config import EncoderSettings
from cld_stream.learn.augment import central_view
from cld_stream.learn.encoder import build_encoder
from cld_stream.storage.snapshots import SPACES, Snapshot

__all__ = ["Embedder", "Features"]
Features = dict[str, NDArray[np.float16]]

_AT_ONCE = 256


class Embedder:
    """One frozen encoder.

    Args:
        settings: what it was built with.
        weights: all of its tensors.
        fit: how the store makes frames square; `stretch` is undone before embedding.
        device: torch's name of it.
        batch: frames embedded at a time.

    Attributes:
        spaces: width of the features by space.
    """

    def __init__(
        self,
        settings: EncoderSettings,
        weights: Mapping[str, NDArray[Any]],
        fit: Literal["stretch", "crop", "pad"],
        device: str = "cpu",
        batch: int = _AT_ONCE,
    ) -> None:
        tensors = {name: torch.from_numpy(np.array(value)) for name, value in weights.items()}
        self._encoder = build_encoder(settings, tensors).to(device).eval().requires_grad_(False)
        self._crop, self._fit, self._device, self._batch = settings.crop, fit, torch.device(device), batch
        widths = (settings.feature_dim, settings.feature_dim, self._encoder.backbone_dim)
        self.spaces = dict(zip(SPACES, widths, strict=True))

    @classmethod
    def of(cls, snapshot: Snapshot, device: str = "cpu", batch: int = _AT_ONCE) -> "Embedder":
        """The encoder of a snapshot."""
        settings = EncoderSettings(**snapshot.manifest["encoder"]["settings"])
        return cls(settings, snapshot.weights(), snapshot.manifest["store"]["fit"], device, batch)

    @torch.inference_mode()
    def embed(self, pixels: NDArray[np.uint8], aspect: NDArray[np.float32]) -> Features:
        """Features of stored frames.

        Args:
            pixels: N x S x S x 3, RGB.
            aspect: N, width / height as shown.

        Returns:
            By space, N x d float16: `instance` and `group` are unit rows, `backbone` is as it comes,
            clipped to what float16 holds.
        """
        out: dict[str, list[NDArray[np.float16]]] = {space: [] for space in self.spaces}
        if self._fit != "stretch":
            aspect = np.ones_like(aspect)  # the content of the frame is in true shape
        for start in range(0, len(pixels), self._batch):
            part = slice(start, start + self._batch)
            frames = torch.from_numpy(pixels[part]).to(self._device)
            shapes = torch.from_numpy(np.asarray(aspect[part], np.float32)).to(self._device)
            result = self._encoder(central_view(frames, shapes, self._crop))
            features = (result.instance_Nd, result.group_Nd, result.backbone_ND)
            limit = float(np.finfo(np.float16).max)
            for space, values in zip(SPACES, features, strict=True):
                out[space].append(values.float().clamp(-limit, limit).cpu().numpy().astype(np.float16))
        return {
            space: np.concatenate(parts) if parts else np.zeros((0, self.spaces[space]), np.float16)
            for space, parts in out.items()
        }
