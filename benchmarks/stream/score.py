"""What an encoder is worth at fixed places of the stream, as it would be published; and what stale features cost."""

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from benchmarks.stream.data import Frames, Problem, sequences
from benchmarks.stream.watched import Watched
from cld_stream.learn.augment import central_view
from cld_stream.learn.learner import Learner, StepReport
from cld_stream.learn.probes import effective_rank, knn_classify, linear_probe, retrieval

__all__ = ["MARKS", "PLACES", "Judge", "by_sequence"]

PLACES = (0.1, 0.2, 0.25, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0)
"""Shares of the stream after which the encoder is looked at."""

MARKS = (0.1, 0.25, 0.5, 1.0)
"""Of these, where the linear probe is fitted, on all labelled frames. All questions are asked at the end alone."""

NEIGHBOURS, SIGMA, PENALTY = 20, 0.1, 1e-3
"""Of kNN (votes weighted with exp(cosine / sigma)) and linear probe, the same for everyone."""

QUICK_LABELLED, QUICK_ASKED, MARK_ASKED = 2_000, 1_000, 2_000
"""At most so many frames and questions of the curve, and questions of the linear probe at a mark."""

_BATCH = 256
_BN_BATCHES = 4


@dataclass
class Judge:
    """Collects the points of a cell's curve.

    Attributes:
        pixels: features are the pixels of the central view, whatever the encoder.
        watched: the guard, which looks at every place, too.
        points: one a look, in order.
    """

    problem: Problem
    pixels: bool = False
    watched: Watched | None = None
    points: list[dict[str, Any]] = field(default_factory=list)
    _stored_ND: Tensor | None = None

    @torch.no_grad()
    def look(self, learner: Learner, share: float, fed: int, report: StepReport | None) -> None:
        """Score the averaged encoder after `fed` frames, and the last step.

        The curve (kNN, recall, rank) has the same gallery and questions everywhere, even subsets. At the marks a linear
        probe is fitted, and at the end everything is asked.
        """
        p, full = self.problem, share in MARKS
        quick_N, quick_Q = _even(len(p.labelled), QUICK_LABELLED), _even(len(p.asked), QUICK_ASKED)
        rows = np.arange(len(p.labelled)) if full else quick_N
        most = len(p.asked) if share == 1 else MARK_ASKED if full else 0
        asks = np.union1d(_even(len(p.asked), most), quick_Q)
        in_N, in_Q = np.searchsorted(rows, quick_N), np.searchsorted(asks, quick_Q)
        embed = _Embed(learner, p.stream, pixels=self.pixels)
        (h_ND, f_Nd), (asked_QD, asked_Qd) = embed(p.labelled[rows]), embed(p.asked[asks])
        labels_N, truth_Q = (
            torch.from_numpy(v).to(learner.device) for v in (p.labelled.label[rows], p.asked.label[asks])
        )
        classes = int(max(p.labelled.label.max(), p.asked.label.max())) + 1

        def knn(x_ND: Tensor, x_QD: Tensor, n: Any = slice(None), q: Any = slice(None)) -> float:
            found = knn_classify(F.normalize(x_ND[n]), labels_N[n], F.normalize(x_QD[q]), NEIGHBOURS, SIGMA, classes)
            return _share(found[1], truth_Q[q])

        point: dict[str, Any] = {"share": share, "frames": fed, "cbp": learner.cbp, "updates": learner.updates}
        point |= {"knn": knn(h_ND, asked_QD, in_N, in_Q), "rank": effective_rank(asked_Qd[in_Q])}
        if full:
            found = linear_probe(h_ND, labels_N, asked_QD, classes, penalties=[PENALTY])
            point["linear"] = _share(found.predicted_Q, truth_Q)
        if share == 1:
            point["whole"] = {"knn": knn(h_ND, asked_QD), "knn_f": knn(f_Nd, asked_Qd)}
            point["whole"] |= by_sequence(p.asked, (found.predicted_Q == truth_Q).cpu().numpy())
        point |= self._stale(f_Nd[in_N], labels_N[in_N], p.at[quick_N], asked_Qd[in_Q], truth_Q[in_Q], fed)
        if self.watched is not None:
            point |= self.watched.look(lambda at: embed(p.stream[at])[1], fed, report)
        self.points.append(point)

    def _stale(
        self, now_ND: Tensor, labels_N: Tensor, at_N: Any, asked_QD: Tensor, truth_Q: Tensor, fed: int
    ) -> dict[str, float]:
        """Recall of the query's class among the frames fed so far: features as stored, and embedded anew.

        A frame is stored with the features of the encoder that was published last when it came; before the first
        publication, with those of the first.
        """
        if (at_N < 0).any():
            return {}
        stored_ND = now_ND.clone() if self._stored_ND is None else self._stored_ND
        seen = torch.from_numpy(at_N < fed).to(now_ND.device)
        found: dict[str, float] = {}
        for name, gallery_ND in (("fresh", now_ND), ("stored", stored_ND)):
            recall = retrieval(gallery_ND[seen], labels_N[seen], asked_QD, truth_Q, (1, 10)).recall
            found |= {f"recall{k}_{name}": round(value, 4) for k, value in recall.items()}
        stored_ND[~seen] = now_ND[~seen]  # whoever comes next is stored by the encoder of today
        self._stored_ND = stored_ND
        return found


class _Embed:
    """The averaged encoder, with batch-norm statistics of the buffer: what a snapshot would hold."""

    def __init__(self, learner: Learner, stream: Frames, *, pixels: bool) -> None:
        self._pixels = pixels
        ids = torch.from_numpy(learner.buffer.ids[learner.draw(_BN_BATCHES * _BATCH)])
        parts = [rows for rows in torch.split(ids, _BATCH) if len(rows) > 1]
        self._device, self._crop = learner.device, learner.settings.encoder.crop
        self._encoder = learner.averaged((stream.pixels[rows].to(self._device), stream.aspect[rows]) for rows in parts)

    def __call__(self, frames: Frames) -> tuple[Tensor, Tensor]:
        """Backbone features and unit f_I, in float32."""
        outs, flat = [], []
        for pixels, aspect in zip(torch.split(frames.pixels, _BATCH), torch.split(frames.aspect, _BATCH), strict=True):
            x = central_view(pixels.to(self._device), aspect, self._crop)
            outs.append(self._encoder(x.contiguous(memory_format=torch.channels_last)))
            flat.append(x.flatten(1))
        if self._pixels:
            h_ND = torch.cat(flat).float()
            return h_ND, F.normalize(h_ND)
        return torch.cat([o.backbone_ND for o in outs]).float(), torch.cat([o.instance_Nd for o in outs])


def _even(n: int, most: int) -> NDArray[np.int64]:
    """At most so many of n rows, evenly spread."""
    return np.arange(0, n, -(-n // most)) if most else np.empty(0, np.int64)


def by_sequence(asked: Frames, right_Q: NDArray[np.bool_]) -> dict[str, Any]:
    """Right answers and questions of every sequence, for what is told about others like them."""
    if (asked.origin.source < 0).any():
        return {}
    number = sequences(asked)
    right, questions = np.bincount(number, right_Q).astype(int), np.bincount(number)
    return {"by_sequence": np.stack([right, questions], 1).tolist()}


def _share(found_Q: Tensor, truth_Q: Tensor) -> float:
    return round(float((found_Q == truth_Q).float().mean()), 4)
