"""Instance branches: how a frame is told from all others. Each stands with and without CLD.

| `loss.branch` | negatives | what it remembers |
| --- | --- | --- |
| `npid` | all live rows of the bank, or m drawn ones | nothing of its own; the normaliser when drawn |
| `moco` | a queue of keys | key encoder, queue |
| `byol` | none | target encoder, predictor |
| `simclr` | the batch | nothing |
"""

from cld_stream.config import Settings
from cld_stream.learn.branches.branch import Batch, Branch
from cld_stream.learn.branches.byol import BYOL
from cld_stream.learn.branches.moco import MoCo
from cld_stream.learn.branches.npid import NPID
from cld_stream.learn.branches.simclr import SimCLR
from cld_stream.learn.encoder import Encoder

__all__ = ["BRANCHES", "Batch", "Branch", "make_branch"]

BRANCHES: dict[str, type[Branch]] = {"npid": NPID, "moco": MoCo, "byol": BYOL, "simclr": SimCLR}


def make_branch(settings: Settings, encoder: Encoder) -> Branch:
    """The branch that `loss.branch` names. BYOL's predictor draws from torch's global generator."""
    return BRANCHES[settings.loss.branch](settings, encoder)
