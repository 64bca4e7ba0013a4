"""MoCo: each frame against a queue of keys of a momentum encoder (He et al. 2020). InfoMin is MoCo with its recipe."""

from typing import Any

import torch
from torch import Tensor, nn

from cld_stream.config import Settings
from cld_stream.learn.branches.branch import Batch, Branch
from cld_stream.learn.branches.momentum import MomentumEncoder
from cld_stream.learn.encoder import Encoder
from cld_stream.learn.losses import info_nce
from cld_stream.learn.near import Near

__all__ = ["KeyQueue", "MoCo"]

# Shape suffixes: N frames, K keys of the queue, D features.


class KeyQueue(nn.Module):
    """The newest K keys and the frames that they belong to. Empty places have id -1 and a zero row.

    Attributes:
        keys_KD: unit rows; zero where empty.
        ids_K: frame ids; -1 = empty.
        place_K, time_K: what tells near-repeats of these frames, see `Near`; -1 = near nobody.
        cursor: where the next key goes, int64 scalar.
    """

    keys_KD: Tensor
    ids_K: Tensor
    place_K: Tensor
    time_K: Tensor
    cursor: Tensor

    def __init__(self, size: int, dim: int) -> None:
        super().__init__()
        self.register_buffer("keys_KD", torch.zeros(size, dim))
        self.register_buffer("ids_K", torch.full((size,), -1))
        self.register_buffer("place_K", torch.full((size,), -1))
        self.register_buffer("time_K", torch.zeros(size, dtype=torch.float64))
        self.register_buffer("cursor", torch.tensor(0))

    @torch.no_grad()
    def push(self, keys_ND: Tensor, ids_N: Tensor, near: Near | None = None) -> None:
        """The newest keys take the place of the oldest ones, whatever N is: of more than K the last K stay."""
        size, n = len(self.ids_K), len(ids_N)
        kept = min(n, size)
        offset = torch.arange(n - kept, n, device=self.cursor.device)
        places = (self.cursor + offset) % size
        self.keys_KD[places] = keys_ND[n - kept :].float()
        self.ids_K[places] = ids_N[n - kept :]
        self.place_K[places] = -1 if near is None else near.place_N[n - kept :]
        self.time_K[places] = 0 if near is None else near.time_N[n - kept :]
        self.cursor.copy_((self.cursor + n) % size)

    @torch.no_grad()
    def forget(self, ids_N: Tensor) -> None:
        """The keys of these frames leave; their places stay empty until the cursor comes round."""
        gone_K = torch.isin(self.ids_K, ids_N)
        self.keys_KD[gone_K] = 0
        self.ids_K[gone_K] = -1
        self.place_K[gone_K] = -1

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        """Checkpoints of the first release do not know the places."""
        for name, value in (("place_K", self.place_K), ("time_K", self.time_K)):
            state_dict.setdefault(prefix + name, value)
        super()._load_from_state_dict(state_dict, prefix, *args)


class MoCo(Branch):
    """Three crops of every frame, as in the code of Wang, Liu, Yu: two queries, which share CLD, and one key.

    Departures, because this is a stream: the queue starts empty, and what is empty does not stand in the softmax; a
    key outlives the frame's eviction from the buffer, but not its being forgotten; a frame that is replayed before its
    old keys have left the queue does not have them as negatives (over epochs of a set larger than the queue it
    never would).
    """

    views = 3

    def __init__(self, settings: Settings, encoder: Encoder) -> None:
        super().__init__(settings, encoder)
        self._temperature = settings.loss.temperature_instance
        self.key_encoder = MomentumEncoder(encoder, settings.loss.key_momentum)
        self.queue = KeyQueue(settings.loss.queue, settings.encoder.feature_dim)

    def forward(self, batch: Batch) -> Tensor:
        """Two queries, one key."""
        queue, ids_N, t = self.queue, batch.ids_N, self._temperature
        (k_ND,) = self.key_encoder(batch.views[2:], batch.pieces)
        self._pushed = k_ND, ids_N, batch.near
        others_NK = (queue.ids_K >= 0) & (queue.ids_K != ids_N[:, None])
        if batch.near is not None:
            others_NK &= ~batch.near.to(queue.place_K, queue.time_K)
        first = info_nce(batch.f1_ND, k_ND, queue.keys_KD, t, others_NK)
        second = info_nce(batch.f2_ND, k_ND, queue.keys_KD, t, others_NK)
        return (first + second) / 2

    def follow(self, encoder: Encoder) -> None:
        """The key encoder moves, the batch's keys enter the queue."""
        self.key_encoder.follow(encoder)
        self.queue.push(*self._pushed)

    def forget(self, ids_N: Tensor) -> None:
        """Their keys leave the queue."""
        self.queue.forget(ids_N)
