"""Persistent groups: spherical k-means over the rows of a memory bank, kept up while rows come, move and go.

What is clustered are group features f_G, kept in a second `MemoryBank` beside the one of the instance features f_I:
the cross-level loss compares f_G with centroids, so these must be means of f_G. See docs/decisions/033-bank-groups.md.
"""

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor

from cld_stream.learn.groups import TIE, segment_means
from cld_stream.learn.precision import fast_float32

__all__ = ["IncrementalKMeans"]

# Shape suffixes: N rows at hand, M slots of the bank, D features, K groups, H = 2K halves of groups.

_BLOCK = 8192
"""Rows compared with all centroids at a time: bounds the memory of a refinement to _BLOCK x K. A power of two."""

_HALVING = 3
"""Rounds of 2-means that cut a group in two."""

_WORTH = 1.5
"""A group is given up for another one's split only if the split gains this many times what giving up costs."""

_SAME = 0.5
"""A group whose centroid has a smaller cosine with the one of the last refinement is on another cluster now."""


class IncrementalKMeans:
    """Spherical k-means whose groups persist: a centroid is the direction of the mean of its group's unit rows.

    `partial_fit` follows the batch: the mean of a group moves as a running mean over as many rows as the group has in
    the bank, so that it forgets at the pace at which its rows are replaced. `refine` looks at all live rows now and
    then: Lloyd rounds from where the groups stand, and local search in the manner of Lattanzi and Sohler 2019
    (https://proceedings.mlr.press/v97/lattanzi19a.html): groups that are dead or of little use are given up, and their
    places go to halves of crowded groups, if that pays.

    A group has a label, its place 0..K-1, and an identity, a number that is never given twice. Both stay while the
    group follows its cluster. A place that is given to another cluster gets a new identity, and so does one that the
    rows have carried to another cluster since the last refinement. Of a split group the half nearer to where the
    group then was keeps the old identity.

    Attributes:
        k: most groups.
        rows_per_group: K = live rows / rows_per_group, at most k; 1 = k groups as soon as there are k rows.
            K grows in `refine`, as far as the rows differ, and never shrinks.
        means_KD: mean unit row of each group, float32. Its length in [0, 1] tells how coherent the group is.
        identity_K: int64.
        group_M: int64 label of the group of each slot's row; -1 = no row, or none that was seen.
        opened: identities given so far.
    """

    def __init__(
        self, k: int, dim: int, slots: int, *, rows_per_group: int = 1, device: torch.device | str = "cpu"
    ) -> None:
        if k < 1 or rows_per_group < 1:
            raise ValueError(f"k and rows_per_group must be >= 1, got {k} and {rows_per_group}")
        self.k, self.rows_per_group = k, rows_per_group
        self.means_KD = torch.zeros(0, dim, device=device)
        self.identity_K = torch.zeros(0, dtype=torch.int64, device=device)
        self.group_M = torch.full((slots,), -1, device=device)
        self.opened = 0
        self._anchor_KD = self.means_KD  # at the last refinement

    def __len__(self) -> int:
        """K, the number of groups so far; 0 before the first row."""
        return len(self.means_KD)

    def centroids(self) -> Tensor:
        """K x D unit rows (zero where the rows of a group cancel)."""
        return F.normalize(self.means_KD, dim=1)

    def sizes(self) -> Tensor:
        """K: live rows of each group, int64; 0 = dead, until the next refinement finds a use for it."""
        return torch.bincount(self.group_M + 1, minlength=len(self) + 1)[1:]

    @torch.no_grad()
    def predict(self, x_ND: Tensor) -> Tensor:
        """Label of the nearest group of each row (int64); -1 while there is no group. Changes nothing."""
        if not len(self):
            return torch.full((len(x_ND),), -1, device=x_ND.device)
        with fast_float32(x_ND.device):
            centroids_DK = self.centroids().T
            labels = [(block_ND.float() @ centroids_DK).argmax(1) for block_ND in _blocks(x_ND)]
        return torch.cat(labels)[: len(x_ND)]

    def group_of(self, slots_N: Tensor, x_ND: Tensor) -> Tensor:
        """Label of the group of each slot's row; where it has none, or the slot is -1, the group nearest to x."""
        own_N = self.group_M[slots_N.clamp(min=0)]
        return torch.where((slots_N >= 0) & (own_N >= 0), own_N, self.predict(x_ND))

    @torch.no_grad()
    def partial_fit(self, x_ND: Tensor, slots_N: Tensor) -> None:
        """Take in rows that were born or have moved: each joins its nearest group, and the groups move towards them.

        Args:
            x_ND: unit rows as they now stand in the bank. Rows that are not finite are left out: their slots have
                no group.
            slots_N: their slots, distinct.
        """
        with fast_float32(x_ND.device):
            self.forget(slots_N)
            finite_N = x_ND.isfinite().all(1)
            x_ND, slots_N = x_ND[finite_N].float(), slots_N[finite_N]
            if not len(x_ND):
                return
            if not len(self):
                self._open(_distinct(x_ND[: self._most(len(x_ND))]))
            labels_N = self.predict(x_ND)
            self.group_M[slots_N] = labels_N
            share_K = torch.bincount(labels_N, minlength=len(self)) / self.sizes().clamp(min=1)
            self.means_KD = self.means_KD.lerp(segment_means(x_ND, labels_N, len(self)), share_K[:, None])

    @torch.no_grad()
    def refine(self, rows_MD: Tensor, live_M: Tensor, rng: torch.Generator, rounds: int = 1) -> None:
        """Fit the groups to all live rows, starting from where they stand, and label every slot anew.

        Afterwards `means_KD` are the means of the rows that carry each label.

        Args:
            rows_MD, live_M: of the bank. Rows that are not finite count as dead.
            rng: decides where groups are cut. The same state, rows and generator give the same groups, bit for bit.
            rounds: >= 1 of assignment, means, and local search; a few more are taken while K still grows.
        """
        with fast_float32(rows_MD.device):
            live_N = (live_M & rows_MD.isfinite().all(1)).nonzero()[:, 0]
            x_ND = rows_MD[live_N].float()
            self.group_M.fill_(-1)
            if not len(x_ND):
                return
            if not len(self):
                self._open(x_ND[:1])
            for done in range(rounds + self.k.bit_length()):
                before = len(self)
                self._round(x_ND, rng)
                if done + 1 >= rounds and len(self) == before:
                    break
            self.group_M[live_N] = label_N = self.predict(x_ND)
            self._average(x_ND, label_N)
            lost_K = F.cosine_similarity(self.means_KD, self._anchor_KD) < _SAME
            self._rename(lost_K.nonzero()[:, 0])
            self._anchor_KD = self.means_KD.clone()

    def forget(self, slots_N: Tensor) -> None:
        """The rows of these slots are gone. The groups stay where they are."""
        self.group_M[slots_N] = -1

    def state_dict(self) -> dict[str, Tensor]:
        """All that changes, as tensors (not copies)."""
        places = {"means": self.means_KD, "anchor": self._anchor_KD, "identity": self.identity_K}
        return places | {"group": self.group_M, "opened": torch.tensor(self.opened)}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Take saved groups over.

        Raises:
            ValueError: they are of another width, of more slots or fewer, or of more groups than k.
        """
        k, dim = state["means"].shape
        if dim != self.means_KD.shape[1] or state["group"].shape != self.group_M.shape or k > self.k:
            raise ValueError(
                f"saved groups are {k} x {dim} over {len(state['group'])} slots, here at most "
                f"{self.k} x {self.means_KD.shape[1]} over {len(self.group_M)}"
            )
        device = self.means_KD.device
        self.means_KD = state["means"].to(device, copy=True)
        self._anchor_KD = state["anchor"].to(device, copy=True)
        self.identity_K = state["identity"].to(device, copy=True)
        self.group_M = state["group"].to(device, copy=True)
        self.opened = int(state["opened"])

    def _most(self, rows: int) -> int:
        """Most groups for so many rows."""
        return min(self.k, max(1, rows // self.rows_per_group))

    def _open(self, means_ND: Tensor) -> None:
        """New places with new identities."""
        k = len(self)
        self.means_KD = torch.cat([self.means_KD, means_ND])
        self._anchor_KD = torch.cat([self._anchor_KD, means_ND])
        self.identity_K = F.pad(self.identity_K, (0, len(means_ND)))
        self._rename(torch.arange(k, len(self), device=self.identity_K.device))

    def _rename(self, places: Tensor) -> None:
        """New identities for these places."""
        self.identity_K[places] = torch.arange(self.opened, self.opened + len(places), device=places.device)
        self.opened += len(places)

    def _average(self, x_ND: Tensor, label_N: Tensor) -> Tensor:
        """Give each group the mean of its rows; an empty one stays. Returns the sizes (K)."""
        size_K = torch.bincount(label_N, minlength=len(self))
        mean_KD = segment_means(x_ND, label_N, len(self))
        self.means_KD = torch.where(size_K[:, None] > 0, mean_KD, self.means_KD)
        return size_K

    def _round(self, x_ND: Tensor, rng: torch.Generator) -> None:
        """One Lloyd round, and the moves that pay: the least useful places go to halves of crowded groups."""
        k = len(self)
        centroids_KD = self.centroids()
        label_N, near_N, next_N = _two_nearest(x_ND, centroids_KD)
        size_K = self._average(x_ND, label_N)

        # |sum of a group's rows| = sum of their cosines with its centroid, so halves need no second look at the rows
        half_HD, half_H = self._cut(x_ND, label_N, near_N, rng)
        worth_K = size_K * self.means_KD.norm(dim=1)
        gain_K = (half_H * half_HD.norm(dim=1)).view(k, 2).sum(1) - worth_K - TIE * size_K
        cost_K = worth_K - size_K * segment_means(next_N[:, None], label_N, k)[:, 0]
        heir_K = (centroids_KD @ centroids_KD.T).fill_diagonal_(-torch.inf).argmax(1)
        moves = _moves(gain_K.tolist(), cost_K.tolist(), heir_K.tolist(), self._most(len(x_ND)) - k)
        if not moves:
            return
        split, place = torch.tensor(moves, device=x_ND.device).T
        nearness_K2 = (F.normalize(half_HD, dim=1).view(k, 2, -1) * self._anchor_KD[:, None]).sum(2)
        stays = 2 * split + nearness_K2[split].argmax(1)
        leaves_ND = half_HD[stays ^ 1]
        self.means_KD[split] = half_HD[stays]
        taken = place < k
        self.means_KD[place[taken]] = self._anchor_KD[place[taken]] = leaves_ND[taken]
        self._rename(place[taken])
        self._open(leaves_ND[~taken])

    def _cut(self, x_ND: Tensor, label_N: Tensor, near_N: Tensor, rng: torch.Generator) -> tuple[Tensor, Tensor]:
        """Means (H x D) and sizes (H) of two halves of every group: 2h and 2h + 1 are those of group h.

        2-means in all groups at once. One centroid is the group's, the other starts from one of its rows, drawn in
        proportion to its distance as k-means++ does.
        """
        k = len(self)
        wait_N = torch.empty(len(x_ND), device=rng.device).exponential_(generator=rng).to(x_ND.device)
        order_N = (wait_N / (1 - near_N).clamp(min=TIE)).argsort(stable=True)
        order_N = order_N[label_N[order_N].argsort(stable=True)]
        drawn_K = torch.searchsorted(label_N[order_N], torch.arange(k, device=x_ND.device))
        # an empty group draws another's row, but has none to lose to it
        half_HD = torch.stack([self.centroids(), x_ND[order_N[drawn_K.clamp(max=len(x_ND) - 1)]]], 1).flatten(0, 1)
        for _ in range(_HALVING):
            unit_K2D = F.normalize(half_HD, dim=1).view(k, 2, -1)
            way_KD = unit_K2D[:, 1] - unit_K2D[:, 0]
            side_N = torch.cat([
                (x * way_KD[label]).sum(1) > 0
                for x, label in zip(torch.split(x_ND, _BLOCK), torch.split(label_N, _BLOCK), strict=True)
            ])  # fmt: skip
            half_N = 2 * label_N + side_N
            half_HD = segment_means(x_ND, half_N, 2 * k)
        return half_HD, torch.bincount(half_N, minlength=2 * k)


def _distinct(x_ND: Tensor) -> Tensor:
    """Without the rows that repeat an earlier one."""
    repeats_N = (x_ND @ x_ND.T).triu(1).amax(0) > 1 - TIE
    return x_ND[~repeats_N]


def _two_nearest(x_ND: Tensor, centroids_KD: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Label of the nearest centroid of each row, cosine with it, and cosine with the next one (-inf if none)."""
    labels, nears, nexts = [], [], []
    for block_ND in _blocks(x_ND):
        cosine_NK = block_ND @ centroids_KD.T
        near_N, label_N = cosine_NK.max(1)
        labels.append(label_N)
        nears.append(near_N)
        nexts.append(cosine_NK.scatter_(1, label_N[:, None], -torch.inf).amax(1))
    n = len(x_ND)
    return torch.cat(labels)[:n], torch.cat(nears)[:n], torch.cat(nexts)[:n]


def _blocks(x_ND: Tensor) -> list[Tensor]:
    """Pieces of the rows, the last one filled up with zeros to a power of two.

    The number of live rows is another one each time, and oneDNN keeps the code that it compiles for a size of product.
    """
    *full, last_ND = torch.split(x_ND, _BLOCK)
    lack = (1 << max(0, len(last_ND) - 1).bit_length()) - len(last_ND)
    return [*full, F.pad(last_ND, (0, 0, 0, lack))]


def _moves(gain_K: list[float], cost_K: list[float], heir_K: list[int], spare: int) -> list[tuple[int, int]]:
    """Pairs (group to split, place for its second half) that pay, the best first.

    Spare places are taken first, then those of the groups that cost least to give up. A group that is split or that
    inherits the rows of another is not given up in the same round.
    """
    k = len(gain_K)
    splits = iter(sorted(range(k), key=lambda g: -gain_K[g]))
    places = [*range(k, k + spare), *sorted(range(k), key=lambda g: cost_K[g])]
    moves: list[tuple[int, int]] = []
    kept: set[int] = set()
    gone: set[int] = set()
    split = next(splits)
    for place in places:
        cost = cost_K[place] if place < k else 0.0
        if place in kept or place == split or (place < k and heir_K[place] in gone):
            continue
        if not gain_K[split] > max(0.0, _WORTH * cost):
            break
        moves.append((split, place))
        kept.add(split)
        if place < k:
            gone.add(place)
            kept.add(heir_K[place])
        following = next((g for g in splits if g not in gone), None)
        if following is None:
            break
        split = following
    return moves
