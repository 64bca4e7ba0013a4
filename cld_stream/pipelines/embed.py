"""Frames to features, with the weights of a published encoder."""

from collections.abc import Mapping
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray

from cld_stream.config import AugmentSettings, EncoderSettings
from cld_stream.learn.augment import RandomViews, central_view
from cld_stream.learn.encoder import Output, build_encoder
from cld_stream.learn.pieces import Pieces, foreseen_lack
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
        batch: frames embedded at a time; fewer where memory does not hold them.

    Attributes:
        encoder: in eval mode, without gradients, on the device.
        crop: side of a view [pixels].
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
        with foreseen_lack(f"an encoder to embed with on {device}"):
            self.encoder = build_encoder(settings, tensors).to(device).eval().requires_grad_(False)
        self.crop, self._fit, self._device, self._batch = settings.crop, fit, torch.device(device), batch
        self._pieces, self._what = Pieces(batch, "publish.batch"), f"embedding on {device}"
        widths = (settings.feature_dim, settings.feature_dim, self.encoder.backbone_dim)
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
        aspect = self.true_shapes(aspect)
        return self._joined(self._pieces.attempt(lambda: self._parts(pixels, aspect), len(pixels), self._what))

    def _parts(self, pixels: NDArray[np.uint8], aspect: NDArray[np.float32]) -> list[Features]:
        parts, size = [], self._pieces.frames or self._batch
        for start in range(0, len(pixels), size):
            part = slice(start, start + size)
            parts.append(self._features(central_view(*self._moved(pixels[part], aspect[part]), self.crop)))
        return parts

    @torch.inference_mode()
    def embed_two_views(
        self, pixels: NDArray[np.uint8], aspect: NDArray[np.float32], augment: AugmentSettings, seed: int = 0
    ) -> tuple[Features, Features]:
        """Features of two random views of each frame, as training sees them; otherwise as `embed`."""
        aspect, views = self.true_shapes(aspect), RandomViews(augment, self.crop)
        generator, parts = torch.Generator().manual_seed(seed), []
        for start in range(0, len(pixels), self._batch):
            part = slice(start, start + self._batch)
            pair = views(*self._moved(pixels[part], aspect[part]), generator)
            parts.append([self._features(view) for view in pair])
        return self._joined([pair[0] for pair in parts]), self._joined([pair[1] for pair in parts])

    def true_shapes(self, aspect: NDArray[np.float32]) -> NDArray[np.float32]:
        """Width / height of what a frame holds: 1 where frames are not stretched."""
        return aspect if self._fit == "stretch" else np.ones_like(aspect)

    def _moved(self, pixels: NDArray[np.uint8], aspect: NDArray[np.float32]) -> tuple[torch.Tensor, torch.Tensor]:
        shapes = torch.from_numpy(np.asarray(aspect, np.float32))
        return torch.from_numpy(pixels).to(self._device), shapes.to(self._device)

    def _joined(self, parts: list[Features]) -> Features:
        return {
            space: np.concatenate([part[space] for part in parts]) if parts else np.zeros((0, width), np.float16)
            for space, width in self.spaces.items()
        }

    def _features(self, views_N3CC: torch.Tensor) -> Features:
        """Of a batch, filled up to a power of two: the libraries keep code and memory for every batch size they meet.

        A daemon that embeds what has just come meets all of them: 300 MB.
        """
        n = len(views_N3CC)
        filling_K3CC = views_N3CC[:1].expand((1 << (n - 1).bit_length()) - n, -1, -1, -1)
        full = torch.cat([views_N3CC, filling_K3CC]).contiguous(memory_format=torch.channels_last)
        out: Output = self.encoder(full)
        limit = float(np.finfo(np.float16).max)
        features = (out.instance_Nd, out.group_Nd, out.backbone_ND)
        return {
            space: values[:n].float().clamp(-limit, limit).cpu().numpy().astype(np.float16)
            for space, values in zip(SPACES, features, strict=True)
        }
