"""Reference values of the authors' code, if they are on this machine."""

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

Golden = Callable[[str], Tensor]


@pytest.fixture(scope="session")
def golden() -> Golden:
    """Reads one array of `cld_reference.npz` by key; a test that needs it skips where the file is absent.

    The folder is `CLD_STREAM_GOLDEN`, or `golden` beside the folder that `CLD_STREAM_DATA` names.
    """
    data = os.environ.get("CLD_STREAM_DATA", "")
    folder = os.environ.get("CLD_STREAM_GOLDEN") or (data and str(Path(data).parent / "golden"))
    path = Path(folder or "nowhere") / "cld_reference.npz"
    if not path.is_file():
        pytest.skip("neither CLD_STREAM_GOLDEN nor CLD_STREAM_DATA leads to cld_reference.npz")
    arrays = np.load(path)
    return lambda key: torch.from_numpy(np.array(arrays[key]))
