"""The memory bank: one unit feature per slot of the replay buffer."""

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["MemoryBank"]

# Shape suffixes: M rows, N frames, D features.


class MemoryBank:
    """Prototypes v_i of the frames in the buffer, by slot number. No gradient ever reaches it.

    Attributes:
        rows_MD: float32 unit rows; zero where dead.
        live_M: which rows belong to a frame.
        step_M: learner's step of the last fill or update of each row.
        momentum: m in [0, 1]; 1 = rows never move.
    """

    def __init__(
        self,
        capacity: int,
        dim: int,
        momentum: float,
        device: torch.device | str = "cpu",
    ) -> None:
        self.momentum = momentum
        self.rows_MD = torch.zeros(capacity, dim, device=device)
        self.live_M = torch.zeros(capacity, dtype=torch.bool, device=device)
        self.step_M = torch.zeros(capacity, dtype=torch.int64, device=device)

    @torch.no_grad()
    def fill(self, slots_N: Tensor, f_ND: Tensor, step: int = 0) -> None:
        """Rows are born as the frames' own features (normalised here), never as random vectors."""
        self.rows_MD[slots_N] = F.normalize(f_ND.float(), dim=1)
        self.live_M[slots_N] = True
        self.step_M[slots_N] = step

    @torch.no_grad()
    def update(self, slots_N: Tensor, f1_ND: Tensor, f2_ND: Tensor, step: int = 0) -> None:
        """v <- norm(m v + (1 - m) norm(f1 + f2)) for distinct live slots, f1 and f2 the two views of each frame.

        Departure: the authors update once per view, inside that view's backward pass; here it is once a step, with the
        normalised mean of both. Giving one view twice is the authors' update with that view.
        """
        f_ND = F.normalize(f1_ND.float() + f2_ND.float(), dim=1)
        rows_ND = torch.lerp(f_ND, self.rows_MD[slots_N], self.momentum)
        self.rows_MD[slots_N] = F.normalize(rows_ND, dim=1)
        self.step_M[slots_N] = step

    @torch.no_grad()
    def kill(self, slots_N: Tensor) -> None:
        """The frames of these slots are gone: their rows leave every softmax."""
        self.rows_MD[slots_N] = 0
        self.live_M[slots_N] = False

    def age(self, step: int) -> Tensor:
        """Steps since each live row was last refreshed, in slot order (int64)."""
        return step - self.step_M[self.live_M]

    def state_dict(self) -> dict[str, Tensor]:
        """Its tensors (not copies); the momentum is a setting."""
        return {"rows": self.rows_MD, "live": self.live_M, "step": self.step_M}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Take a saved bank over.

        Raises:
            ValueError: it has another shape.
        """
        if state["rows"].shape != self.rows_MD.shape:
            raise ValueError(f"saved bank is {tuple(state['rows'].shape)}, this one {tuple(self.rows_MD.shape)}")
        for name, tensor in self.state_dict().items():
            tensor.copy_(state[name])
