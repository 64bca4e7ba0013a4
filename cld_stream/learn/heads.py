"""Projection heads: from the backbone's output to the features of a branch. The caller normalises what they give."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

__all__ = ["NormLinear", "make_head"]


class NormLinear(nn.Module):
    """Cosines: norm(h) @ norm(W), each column of W (one output) at unit length; no bias.

    Paper: Wang, Liu, Yu 2021, section 4 (https://arxiv.org/abs/2008.03813).
    """

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(outputs, inputs))
        nn.init.kaiming_uniform_(self.weight, a=5**0.5)

    def forward(self, h_ND: Tensor) -> Tensor:
        """(N, inputs) to (N, outputs), each value in [-1, 1]."""
        return F.linear(F.normalize(h_ND, dim=1), F.normalize(self.weight, dim=1))


def make_head(kind: str, inputs: int, outputs: int) -> nn.Module:
    """A head by name: `linear`, `normlinear`, `mlp` (Linear-ReLU-Linear), `normmlp` (Linear-ReLU-NormLinear);
    `bnlinear` and `bnmlp` have batch norm behind every linear layer, as SimCLR's head has.

    The hidden layer of an MLP is as wide as its input, as in MoCo v2.

    Raises:
        ValueError: another name.
    """
    if kind not in ("linear", "normlinear", "bnlinear", "mlp", "normmlp", "bnmlp"):
        raise ValueError(f"unknown head {kind!r}")
    if kind == "bnlinear":
        return _linear_bn(inputs, outputs)
    if kind == "bnmlp":
        return nn.Sequential(*_linear_bn(inputs, inputs), nn.ReLU(inplace=True), *_linear_bn(inputs, outputs))
    last = (NormLinear if kind.startswith("norm") else nn.Linear)(inputs, outputs)
    if "mlp" not in kind:
        return last
    return nn.Sequential(nn.Linear(inputs, inputs), nn.ReLU(inplace=True), last)


def _linear_bn(inputs: int, outputs: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(inputs, outputs, bias=False), nn.BatchNorm1d(outputs))
