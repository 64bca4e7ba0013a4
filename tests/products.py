"""Which sizes of matrix products are computed."""

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

__all__ = ["Products"]


class Products(TorchFunctionMode):
    """Notes the sizes of the factors of every product inside its `with`.

    oneDNN compiles code for each new size, up to a megabyte of it, and keeps that of a thousand: a daemon whose sizes
    follow the number of frames grows for weeks.
    """

    def __init__(self) -> None:
        super().__init__()
        self.sizes: set[tuple[torch.Size, ...]] = set()

    def __torch_function__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        if func in (Tensor.matmul, Tensor.__matmul__, torch.matmul, torch.mm, torch.addmm):
            self.sizes.add(tuple(a.shape for a in args if isinstance(a, Tensor)))
        return func(*args, **kwargs or {})
