"""The cross-level term with what it remembers: local groups, persistent ones over the bank, or half of each."""

from collections.abc import Mapping
from functools import partial

import torch
from torch import Tensor

from cld_stream.config import LossSettings
from cld_stream.learn.bank import MemoryBank
from cld_stream.learn.groups import Grouping, group_means, local_kmeans
from cld_stream.learn.incremental import IncrementalKMeans
from cld_stream.learn.losses import bank_level_loss, cross_level_loss
from cld_stream.learn.ncut import normalised_cuts
from cld_stream.learn.near import Near

__all__ = ["CrossLevel"]

# Shape suffixes: N frames, D features.

_LOCAL_SHARE = {"local": 1.0, "bank": 0.0, "both": 0.5, "segments": 1.0}


class CrossLevel:
    """L_G, the group branch (Wang, Liu, Yu 2021, section 3). With `local` groups alone it remembers nothing.

    Attributes:
        grouping: how the rows of one view fall into local groups.
        bank: f_G of every buffered frame, by slot; None with local groups alone. See docs/decisions/033-bank-groups.md.
        groups: the persistent groups of its rows; None likewise.
    """

    def __init__(self, loss: LossSettings, capacity: int, dim: int, device: torch.device) -> None:
        self._loss, self._local = loss, _LOCAL_SHARE[loss.cross_level]
        if loss.grouping == "ncut":
            self.grouping: Grouping = partial(
                normalised_cuts, k=loss.groups, eigenvectors=loss.groups, iters=loss.kmeans_iters
            )
        else:
            self.grouping = partial(local_kmeans, k=loss.groups, iters=loss.kmeans_iters)
        self.bank: MemoryBank | None = None
        self.groups: IncrementalKMeans | None = None
        if self._local < 1:
            self.bank = MemoryBank(capacity, dim, loss.bank_momentum, device)
            self.groups = IncrementalKMeans(
                loss.bank_groups, dim, capacity, rows_per_group=loss.bank_rows_per_group, device=device
            )

    def __call__(
        self,
        g1_ND: Tensor,
        g2_ND: Tensor,
        slots_N: Tensor,
        newborn_N: Tensor,
        order_N: Tensor,
        near: Near | None = None,
    ) -> Tensor:
        """The term, in nats; changes nothing.

        The paper's batches are shuffled, and k-means starts from their first rows. Here fresh frames come first, which
        are often near-repeats: groups that start from them leave the replayed frames in a few crowds.

        Args:
            g1_ND, g2_ND: unit group features of the two views.
            slots_N: slot of each frame; -1 = none.
            newborn_N: whose rows are not theirs yet.
            order_N: a permutation: the rows that come first in it are where local groups start.
            near: what tells shots or segments apart, where these are the groups.
        """
        term, share, t = g1_ND.new_zeros(()), self._local, self._loss.temperature_group
        if share > 0:
            places = near if self._loss.cross_level == "segments" else None
            grouping = self.grouping if places is None else _by_place(places.place_N[order_N])
            term = term + share * cross_level_loss(g1_ND[order_N], g2_ND[order_N], grouping, t)
        if self.groups is not None and len(self.groups):  # there are none before the first step
            own_N = torch.where(newborn_N, -1, slots_N)
            labels1_N, labels2_N = (self.groups.group_of(own_N, g.detach()) for g in (g2_ND, g1_ND))
            term = term + (1 - share) * bank_level_loss(g1_ND, g2_ND, labels1_N, labels2_N, self.groups.centroids(), t)
        return term

    def follow(
        self, g1_ND: Tensor, g2_ND: Tensor, slots_N: Tensor, newborn_N: Tensor, step: int, rng: torch.Generator
    ) -> None:
        """Rows and groups move, now that the step has gone well. `rng` cuts groups at a refinement."""
        if self.bank is None or self.groups is None:
            return
        g1_ND, g2_ND = g1_ND.detach(), g2_ND.detach()
        old_N = ~newborn_N & (slots_N >= 0)
        self.bank.fill(slots_N[newborn_N], (g1_ND + g2_ND)[newborn_N], step)
        self.bank.update(slots_N[old_N], g1_ND[old_N], g2_ND[old_N], step)
        taken = slots_N[slots_N >= 0]
        self.groups.partial_fit(self.bank.rows_MD[taken], taken)
        if (step + 1) % self._loss.bank_refine_steps == 0:
            self.groups.refine(self.bank.rows_MD, self.bank.live_M, rng)

    def forget(self, slots_N: Tensor) -> None:
        """The frames of these slots are gone."""
        if self.bank is not None and self.groups is not None:
            self.bank.kill(slots_N)
            self.groups.forget(slots_N)

    def state_dict(self) -> dict[str, Tensor]:
        """All that is remembered, by name (not copies)."""
        if self.bank is None or self.groups is None:
            return {}
        parts = {"bank": self.bank.state_dict(), "groups": self.groups.state_dict()}
        return {f"{part}.{name}": t for part, state in parts.items() for name, t in state.items()}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Take a saved state over.

        Raises:
            KeyError, ValueError: it is that of other settings.
        """
        for part, owner in (("bank", self.bank), ("groups", self.groups)):
            if owner is not None:
                owner.load_state_dict({n.removeprefix(f"{part}."): t for n, t in state.items() if n.startswith(part)})


def _by_place(place_N: Tensor) -> Grouping:
    """Frames of one shot or segment are a group; a frame of none is one by itself."""
    alone_N = torch.where(place_N < 0, -1 - torch.arange(len(place_N), device=place_N.device), place_N)
    groups, labels_N = torch.unique(alone_N, return_inverse=True)
    return lambda x_ND: (labels_N, group_means(x_ND.float(), labels_N, len(groups)))
