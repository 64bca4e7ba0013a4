"""Undoing what a step changes before it knows that its loss is finite, and that memory holds it."""

from torch import Tensor, nn

from cld_stream.learn.bank import MemoryBank

__all__ = ["Undo"]


class Undo:
    """Batch-norm statistics and newborn bank rows, as they were when this was made. Calling it puts them back.

    Attributes:
        possible: until more has changed than that.
    """

    def __init__(self, encoder: nn.Module, bank: MemoryBank, born: Tensor) -> None:
        self._encoder, self._bank, self._born, self.possible = encoder, bank, born, True
        self._statistics = [(b, b.clone()) for b in encoder.buffers()]
        self._rows = {name: t[born] for name, t in bank.state_dict().items()}

    def __call__(self) -> None:
        """Back to how it was; no gradient is left."""
        self._encoder.zero_grad()
        for buffer, before in self._statistics:
            buffer.copy_(before)
        for name, tensor in self._bank.state_dict().items():
            tensor[self._born] = self._rows[name]
