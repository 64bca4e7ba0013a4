"""Stochastic gradient descent that refuses what is not finite."""

import math
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from cld_stream.config import OptimSettings

__all__ = ["Descent"]


class Descent:
    """SGD with momentum over the parameters that want a gradient; warm-up, then a constant rate or a cosine."""

    def __init__(self, parameters: Mapping[str, nn.Parameter], settings: OptimSettings) -> None:
        self._settings = settings
        self._parameters = {name: p for name, p in parameters.items() if p.requires_grad}
        self._optimiser = torch.optim.SGD(
            self._parameters.values(), settings.lr, settings.momentum, weight_decay=settings.weight_decay
        )

    def lr(self, updates: int) -> float:
        """Of the step after so many updates: linear from lr/100 over the warm-up, then constant or half a cosine."""
        s = self._settings
        factor = 0.01 + 0.99 * min(1.0, updates / s.warmup_steps) if s.warmup_steps else 1.0
        if s.schedule == "cosine" and updates > s.warmup_steps:
            share = (updates - s.warmup_steps) / (s.total_steps - s.warmup_steps)
            factor = (1 + math.cos(math.pi * min(1.0, share))) / 2
        return s.lr * factor

    def gradients(self, loss: Tensor) -> bool:
        """The gradients of a loss; False = one of them, or the loss, is not finite, and none is left."""
        self._optimiser.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        grads = [p.grad for p in self._parameters.values() if p.grad is not None]
        finite = torch.stack([norm.isfinite() for norm in torch._foreach_norm(grads)]).all()
        ok = bool(finite & loss.isfinite())
        if not ok:
            self._optimiser.zero_grad()
        return ok

    def step(self, lr: float) -> None:
        """One step down these gradients."""
        self._optimiser.param_groups[0]["lr"] = lr
        self._optimiser.step()
        self._optimiser.zero_grad()

    def state_dict(self) -> dict[str, Tensor]:
        """The momentum of each parameter that has one, by its name (not copies)."""
        velocity = {name: self._optimiser.state[p].get("momentum_buffer") for name, p in self._parameters.items()}
        return {name: v for name, v in velocity.items() if v is not None}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Take saved momenta over; a parameter without one starts at rest."""
        self._optimiser.state.clear()
        for name, p in self._parameters.items():
            if name in state:
                self._optimiser.state[p]["momentum_buffer"] = torch.empty_like(p).copy_(state[name])
