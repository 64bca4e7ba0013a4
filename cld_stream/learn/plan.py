"""What a step is asked to do, and what it did."""

from dataclasses import dataclass, field

import numpy as np
from torch import Tensor

from cld_stream.learn.buffer import Admission, Ids, Origin

__all__ = ["StepPlan", "StepReport"]


def _none() -> Ids:
    return np.empty(0, np.int64)


@dataclass(frozen=True)
class StepPlan:
    """The batch of one step: F fresh frames first, then replayed ones; N in all.

    Attributes:
        ids: (N) frame ids.
        slots: (N) buffer slots after the step; -1 = a fresh frame that the buffer does not take.
        admission: what becomes of the F fresh frames if the step goes well.
        origin: where the frames come from.
        partners, partner_ids: (P) slots and ids of further buffered frames, whose pixels follow those of the batch.
        second: (N) of which of the N + P frames the second view is: its own, unless it has a partner; empty when P = 0.
    """

    ids: Ids
    slots: Ids
    admission: Admission
    origin: Origin
    partners: Ids = field(default_factory=_none)
    partner_ids: Ids = field(default_factory=_none)
    second: Ids = field(default_factory=_none)

    @property
    def fresh(self) -> int:
        """F, the number of fresh frames."""
        return len(self.admission.ids)

    @property
    def wanted(self) -> Ids:
        """(N + P) ids of the frames whose pixels the step needs."""
        return np.concatenate([self.ids, self.partner_ids])

    @property
    def wanted_slots(self) -> Ids:
        """(N + P) their slots."""
        return np.concatenate([self.slots, self.partners])


@dataclass(frozen=True)
class StepReport:
    """What one step did. Losses in nats.

    Attributes:
        ok: False = a loss or a gradient was not finite, and nothing has changed.
        loss: instance + lambda x cld, and the alignment, if there is any.
        lr: the rate of this step.
        features, group_features: (N x d) unit features of the first view, detached, on the device.
    """

    ok: bool
    loss: float
    instance: float
    cld: float
    lr: float
    features: Tensor
    group_features: Tensor
