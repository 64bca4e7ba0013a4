"""The probes of `cld-stream eval` by name: each turns judged frames into numbers. `docs/eval.md` explains them."""

import difflib
from collections.abc import Callable, Sequence, Sized
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from cld_stream.config import AugmentSettings
from cld_stream.errors import StoreError, UsageError
from cld_stream.learn import probes
from cld_stream.learn.augment import central_view
from cld_stream.pipelines.embed import Embedder
from cld_stream.pipelines.evaluate_frames import JudgedFrames, Tell
from cld_stream.pipelines.evaluate_rounds import Plan, spread
from cld_stream.search.cluster import nearest_group, spherical_kmeans

__all__ = ["LABELLED", "NEIGHBOURS", "PROBES", "Number", "Problem", "choose_probes"]

# Shape suffixes: N frames, D features, K groups, Q questions.

NEIGHBOURS, SIGMA = 20, 0.1
"""Of kNN: voters, and the temperature of their votes exp(cosine / SIGMA)."""

APART = 32
"""Frames of one sequence that are fewer apart are near-repeats, and no distractors of each other."""

_MOST_ROWS, _MOST_QUESTIONS, _MOST_TUNED, _AT_ONCE = 8192, 2048, 10_000, 256


@dataclass(frozen=True)
class Number:
    """What a probe says.

    Attributes:
        name: of the number; `probe` is the one that was asked for.
        n: questions, or frames.
        better: which direction.
        low, high: its range.
        meaning: in words.
    """

    name: str
    probe: str
    value: float
    n: int
    better: Literal["higher", "lower"]
    low: float
    high: float
    meaning: str


@dataclass(frozen=True)
class Problem:
    """What is judged, by which features.

    Attributes:
        space: whose features kNN and the others compare, by cosine.
        plan: who asks whom.
        centroids: of groups in the space `group`; None = fit `groups` of them to these frames.
    """

    frames: JudgedFrames
    embedder: Embedder
    space: str
    plan: Plan
    centroids: NDArray[np.float32] | None
    groups: int
    device: str

    @cached_property
    def unit(self) -> Tensor:
        """Unit rows."""
        return self.tensor(self.frames.features[self.space])

    @cached_property
    def group(self) -> Tensor:
        """Group of each frame."""
        vectors = self.frames.features["group"]
        centroids = spherical_kmeans(vectors, self.groups) if self.centroids is None else self.centroids
        return torch.from_numpy(nearest_group(vectors, centroids).astype(np.int64)).to(self.device)

    @cached_property
    def label(self) -> Tensor:
        """Class of each frame, -1 = none."""
        return torch.from_numpy(self.frames.label).to(self.device)

    @property
    def classes(self) -> int:
        """How many."""
        return len(self.frames.classes)

    @property
    def asked(self) -> NDArray[np.int64]:
        """Every question of every round."""
        return np.concatenate([one.asked for one in self.plan.rounds])

    def tensor(self, features: NDArray[np.float16]) -> Tensor:
        """Unit rows on the device; rows of zeros stay."""
        return F.normalize(torch.from_numpy(features).float()).to(self.device)

    def rows(self, at: NDArray[np.int64]) -> Tensor:
        """An index on the device."""
        return torch.from_numpy(at).to(self.device)


Probe = Callable[[Problem, Tell], list[Number]]


def _share(name: str, value: float, n: int, meaning: str, probe: str | None = None) -> Number:
    return Number(name, probe or name, value, n, "higher", 0, 1, meaning)


def _knn(p: Problem, tell: Tell) -> list[Number]:
    right = 0
    for n, one in enumerate(p.plan.rounds):
        gallery = p.rows(one.gallery)
        for asked in torch.split(p.rows(one.asked), 8 * _AT_ONCE):
            tell("knn", n, len(p.plan.rounds))
            _, found = probes.knn_classify(
                p.unit[gallery], p.label[gallery], p.unit[asked], NEIGHBOURS, SIGMA, p.classes
            )
            right += int((found == p.label[asked]).sum())
    common = np.bincount(p.frames.label[p.asked]).max() / len(p.asked)
    meaning = f"share of right answers, a vote of the {NEIGHBOURS} nearest; {common:.3f} = always the commonest class"
    return [_share("knn", right / len(p.asked), len(p.asked), meaning)]


def _linear(p: Problem, tell: Tell) -> list[Number]:
    right = 0
    for n, one in enumerate(p.plan.rounds):
        tell("linear", n, len(p.plan.rounds))
        gallery, asked = p.rows(one.gallery), p.rows(one.asked)
        held = torch.from_numpy(one.held_out).to(p.device)
        told = probes.linear_probe(p.unit[gallery], p.label[gallery], p.unit[asked], p.classes, held)
        right += int((told.predicted_Q == p.label[asked]).sum())
    meaning = "share of right answers of a linear layer on the frozen features"
    return [_share("linear", right / len(p.asked), len(p.asked), meaning)]


def _retrieval(p: Problem, tell: Tell) -> list[Number]:
    ks, queries, precision = (1, 5, 10), 0, 0.0
    hits = dict.fromkeys(ks, 0.0)
    for n, one in enumerate(p.plan.rounds):
        gallery = p.rows(one.gallery)
        asked = spread(one.asked, max(1, _MOST_QUESTIONS * len(one.asked) // len(p.asked)))
        for part in torch.split(p.rows(asked), _AT_ONCE):
            tell("retrieval", n, len(p.plan.rounds))
            found = probes.retrieval(p.unit[gallery], p.label[gallery], p.unit[part], p.label[part], ks)
            queries += found.queries
            precision += found.mean_average_precision * found.queries
            for k in ks:
                hits[k] += found.recall[k] * found.queries
    meaning = "share of questions with their class among the {} nearest"
    numbers = [
        _share(f"recall@{k}", hits[k] / max(1, queries), queries, meaning.format(k), "retrieval") for k in ks
    ]  # fmt: skip
    meaning = "mean average precision of ranking everything: 1 = all of the class come first"
    return [*numbers, _share("map", precision / max(1, queries), queries, meaning, "retrieval")]


def _nmi(p: Problem, tell: Tell) -> list[Number]:
    tell("nmi", 0, 1)
    rows = p.label >= 0
    groups = len(torch.unique(p.group[rows]))
    value = probes.nmi(p.group[rows], p.label[rows])
    meaning = f"shared information of {groups} groups and {p.classes} classes: 0 = unrelated, 1 = the same"
    return [_share("nmi", value, int(rows.sum()), meaning)]


def _purity(p: Problem, tell: Tell) -> list[Number]:
    tell("purity", 0, 1)
    rows = p.label >= 0
    groups = len(torch.unique(p.group[rows]))
    meaning = (
        f"share of frames that have the commonest label of their group ({groups} groups); more groups, more purity"
    )
    return [_share("purity", probes.purity(p.group[rows], p.label[rows]), int(rows.sum()), meaning)]


def _fine_tuning(share: float, p: Problem, tell: Tell) -> list[Number]:
    name, one = f"fine-tuning-{share * 100:g}", p.plan.rounds[0]
    shown = one.gallery[probes.choose_labelled(torch.from_numpy(p.frames.label[one.gallery]), share).numpy()]
    shown = spread(shown, _MOST_TUNED)  # in memory as pixels; the steps draw about twice as many
    shown, pixels, aspect = p.frames.pixels(shown)
    _require_some(name, shown)
    crop, shape = p.embedder.crop, torch.from_numpy(p.embedder.true_shapes(aspect))
    label = torch.from_numpy(p.frames.label[shown])
    model = probes.fine_tune(
        p.embedder.encoder, torch.from_numpy(pixels), shape, label, p.classes, crop, on_step=partial(tell, name)
    )
    right = n = 0
    for part in np.split(one.asked, range(_AT_ONCE, len(one.asked), _AT_ONCE)):
        asked, pixels, aspect = p.frames.pixels(part)
        shape = torch.from_numpy(p.embedder.true_shapes(aspect))
        with torch.inference_mode():
            found = model(central_view(torch.from_numpy(pixels).to(p.device), shape, crop)).argmax(1)
        right, n = right + int((found == p.label[p.rows(asked)]).sum()), n + len(asked)
        tell(f"{name}, asking", int(np.searchsorted(one.asked, part[-1])) + 1, len(one.asked))
    _require_some(name, range(n))
    meaning = f"share of right answers after training on {len(shown):,} labels ({share:.0%})"
    meaning += "; fold 1 asks" if len(p.plan.rounds) > 1 else ""
    return [_share(name, right / n, n, meaning)]


def _require_some(probe: str, rows: Sized) -> None:
    if not len(rows):
        raise StoreError(f"{probe}: none of the pictures that it looks at can be read. Run: cld-stream doctor")


def _alignment(p: Problem, tell: Tell) -> list[Number]:
    rows, views = _some(p, _MOST_QUESTIONS), []
    for start in range(0, len(rows), _AT_ONCE):
        _, pixels, aspect = p.frames.pixels(rows[start : start + _AT_ONCE])
        pair = p.embedder.embed_two_views(pixels, aspect, AugmentSettings(), seed=start)
        views.append([p.tensor(view[p.space]) for view in pair])
        tell("alignment", min(start + _AT_ONCE, len(rows)), len(rows))
    first, second = (torch.cat([pair[i] for pair in views]) for i in (0, 1))
    _require_some("alignment", first)
    meaning = "squared distance of two random views of a frame: 0 = the same, 2 = unrelated"
    return [Number("alignment", "alignment", probes.alignment(first, second), len(first), "lower", 0, 4, meaning)]


def _uniformity(p: Problem, tell: Tell) -> list[Number]:
    tell("uniformity", 0, 1)
    rows = _some(p, _MOST_ROWS)
    value = probes.uniformity(p.unit[p.rows(rows)])
    meaning = "log of how crowded the features are: 0 = one point, about -4 = evenly spread"
    return [Number("uniformity", "uniformity", value, len(rows), "lower", -8, 0, meaning)]


def _effective_rank(p: Problem, tell: Tell) -> list[Number]:
    tell("effective-rank", 0, 1)
    rows, name = _some(p, _MOST_ROWS), "effective-rank"
    x_ND = p.unit[p.rows(rows)]
    meaning = f"directions that the features use, of {min(x_ND.shape)}"
    return [Number(name, name, probes.effective_rank(x_ND), len(rows), "higher", 1, min(x_ND.shape), meaning)]


def _coherence(p: Problem, tell: Tell) -> list[Number]:
    tell("coherence", 0, 1)
    rows = _some(p, _MOST_ROWS)
    at = p.rows(rows)
    groups = len(torch.unique(p.group[at]))
    value = probes.group_coherence(p.tensor(p.frames.features["group"][rows]), p.group[at])
    meaning = f"how much nearer frames are to their own group than to a random one ({groups} groups)"
    return [Number("coherence", "coherence", value, len(rows), "higher", -1, 1, meaning)]


def _time(p: Problem, tell: Tell) -> list[Number]:
    """Nothing where no sequence has two frames, or where there is nothing else to be found."""
    sequence, ranks = p.frames.sequence, []
    asks = spread(np.flatnonzero(sequence[1:] == sequence[:-1]), _MOST_QUESTIONS)
    place = np.arange(len(sequence))
    for start in range(0, len(asks), _AT_ONCE):
        q = asks[start : start + _AT_ONCE]
        tell("time", start, len(asks))
        blocked = (sequence[q, None] == sequence) & (np.abs(q[:, None] - place) < APART)
        q = q[others := ~blocked.all(1)]
        blocked_QN = torch.from_numpy(blocked[others]).to(p.device)
        ranks.append(probes.target_ranks(p.unit[p.rows(q)], p.unit, p.rows(q + 1), blocked_QN))
    rank = torch.cat(ranks).double() if ranks else torch.zeros(0)
    meaning = "1 / rank of the next frame of a sequence among all that are not near it: 1 = always nearest"
    return [_share("time", float((1 / rank).mean()), len(rank), meaning)] if len(rank) else []


def _some(p: Problem, most: int) -> NDArray[np.int64]:
    return spread(np.arange(len(p.frames)), most)


LABELLED: dict[str, Probe] = {
    "knn": _knn, "linear": _linear, "retrieval": _retrieval, "nmi": _nmi, "purity": _purity,
    "fine-tuning-1": partial(_fine_tuning, 0.01), "fine-tuning-10": partial(_fine_tuning, 0.1),
}  # fmt: skip
"""Probes that need labels."""

PROBES: dict[str, Probe] = LABELLED | {
    "alignment": _alignment, "uniformity": _uniformity, "effective-rank": _effective_rank, "coherence": _coherence,
    "time": _time,
}  # fmt: skip
"""All of them, in the order of the answer."""

_SLOW = ("fine-tuning-1", "fine-tuning-10")


def choose_probes(names: Sequence[str]) -> list[str]:
    """The probes asked for, in the order of `PROBES`; without names all but the slow ones.

    Raises:
        UsageError: an unknown name; the nearest one is named.
    """
    for name in names:
        if name not in PROBES:
            near = difflib.get_close_matches(name, PROBES, n=1, cutoff=0.4)
            hint = f"did you mean {near[0]}? All" if near else "the known ones"
            raise UsageError(f"--probes {name}: there is no such probe; {hint}: {', '.join(PROBES)}.")
    return [name for name in PROBES if name in names or (not names and name not in _SLOW)]
