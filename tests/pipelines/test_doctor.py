"""What `doctor` says of the machine is what the other commands do."""

from pathlib import Path

import pytest
import torch

from cld_stream.pipelines.doctor import doctor
from cld_stream.pipelines.train import STREAM


def test_without_a_gpu_the_row_of_torch_names_the_recipe_that_train_takes(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    (said,) = (check.detail for check in doctor(tmp_path / "none").checks if check.name == "torch")
    assert f"the recipe {STREAM}" in said
