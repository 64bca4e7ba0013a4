"""Averaged weights: what is published. A stream has no end, so any moment must be a good one.

Not MoCo's or BYOL's momentum encoder: nothing is trained against it.
"""

import copy
from collections.abc import Callable, Iterable, Mapping
from typing import TypeVar

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.modules.batchnorm import _BatchNorm

__all__ = ["WeightAverage", "estimate_batch_norm"]

ModuleT = TypeVar("ModuleT", bound=nn.Module)
OutT = TypeVar("OutT")


class WeightAverage:
    """Exponential moving average of a module's parameters, in float32.

    Attributes:
        decay: d; update t uses min(d, (1 + t) / (10 + t)): the random start is soon forgotten.
        updates: t.
    """

    def __init__(self, module: nn.Module, decay: float) -> None:
        self.decay = decay
        self.updates = 0
        self._average = {n: p.detach().clone().float() for n, p in module.named_parameters()}

    @torch.no_grad()
    def follow(self, module: nn.Module) -> None:
        """Move towards the module's present parameters."""
        decay = min(self.decay, (1 + self.updates) / (10 + self.updates))
        present = dict(module.named_parameters())
        torch._foreach_lerp_(
            list(self._average.values()),
            [present[n].detach().float() for n in self._average],
            1 - decay,
        )
        self.updates += 1

    @torch.no_grad()
    def module(self, module: ModuleT) -> ModuleT:
        """A copy of the module with the averaged parameters; buffers are copied as they are."""
        twin = copy.deepcopy(module)
        for name, parameter in twin.named_parameters():
            parameter.copy_(self._average[name])
        return twin

    @torch.no_grad()
    def output(self, module: Callable[..., OutT], x: Tensor) -> OutT:
        """What the module would give with the averaged parameters, in eval mode; buffers are as they are."""
        assert isinstance(module, nn.Module)
        mode = module.training
        module.eval()
        try:
            out: OutT = functional_call(module, self._average, (x,))
        finally:
            module.train(mode)
        return out

    def state_dict(self) -> dict[str, Tensor]:
        """The averaged parameters by name (not copies)."""
        return dict(self._average)

    def load_state_dict(self, state: Mapping[str, Tensor], updates: int) -> None:
        """Take saved averages over.

        Raises:
            KeyError: a parameter has no saved average.
        """
        for name, average in self._average.items():
            average.copy_(state[name])
        self.updates = updates


@torch.no_grad()
def estimate_batch_norm(module: nn.Module, batches: Iterable[Tensor]) -> None:
    """Replace the running statistics of every batch-norm layer by the plain mean over batches.

    Averaged weights have never seen a batch; statistics gathered under other weights do not fit
    them. All other layers work as they do in eval mode: nothing is dropped, nothing is left to chance.
    The module's mode is kept. Without batch-norm layers or batches nothing changes.
    """
    layers = [m for m in module.modules() if isinstance(m, _BatchNorm)]
    batches = iter(batches)
    first = next(batches, None) if layers else None
    if first is None:
        return
    mode, momenta = module.training, [m.momentum for m in layers]
    module.eval()
    for layer in layers:
        layer.reset_running_stats()
        layer.momentum = None  # torch's word for a cumulative mean
        layer.train()
    module(first)
    for batch in batches:
        module(batch)
    module.train(mode)
    for layer, momentum in zip(layers, momenta, strict=True):
        layer.momentum = momentum
