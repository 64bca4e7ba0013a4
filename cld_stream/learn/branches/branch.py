"""What every instance branch is: a loss over a batch, and a memory that moves once the step has gone well."""

from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from cld_stream.config import Settings
from cld_stream.learn.bank import MemoryBank
from cld_stream.learn.encoder import Encoder
from cld_stream.learn.near import Near
from cld_stream.learn.pieces import Pieces

__all__ = ["Batch", "Branch"]

# Shape suffixes: N frames, D features, C side of a view.


@dataclass(frozen=True)
class Batch:
    """A step as a branch sees it.

    Attributes:
        ids_N, slots_N: frame ids, and rows of the bank; -1 = no row.
        newborn_N: whose row was filled in this step.
        views: (`Branch.views`, N, 3, C, C) augmentations of every frame; f1 and f2 are features of the first two.
        f1_ND, f2_ND: unit instance features of the encoder, with gradient.
        bank: prototypes v_i, newborn rows included.
        generator: randomness of this step.
        clock: the learner's step.
        near: which frames are near-repeats, and so no negatives of each other; None = none are.
        pieces: how many frames a pass may hold.
    """

    ids_N: Tensor
    slots_N: Tensor
    newborn_N: Tensor
    views: Tensor
    f1_ND: Tensor
    f2_ND: Tensor
    bank: MemoryBank
    generator: torch.Generator
    clock: int = 0
    near: Near | None = None
    pieces: Pieces = field(default_factory=Pieces)


class Branch(nn.Module):
    """An instance branch. Parameters that need a gradient are trained; `state_dict` is all that it remembers.

    Calling it gives the mean loss of the two views, in nats (BYOL: in squared distance), and changes no state:
    that is for `follow`, after a step that went well. Under autocast the losses stay float32.

    Attributes:
        views: augmentations of every frame that a step needs.
    """

    views = 2

    def __init__(self, settings: Settings, encoder: Encoder) -> None:
        del settings, encoder
        super().__init__()

    def forward(self, batch: Batch) -> Tensor:
        """The instance term of the loss."""
        raise NotImplementedError

    def follow(self, encoder: Encoder) -> None:
        """Remember the batch of the last call, now that the encoder has learnt from it."""

    def forget(self, ids_N: Tensor) -> None:
        """These frames are gone: nothing of them may stay."""
