from pathlib import Path

import pytest

from cld_stream.config import Settings, as_dict, as_toml, load_settings
from cld_stream.errors import UsageError


@pytest.mark.parametrize("more", ["optim.amp=never", "loss.near_s=inf", 'encoder.init=\U0001f600 \xe4"\\.safetensors'])
def test_the_printed_settings_read_back_as_the_same_settings(tmp_path: Path, more: str) -> None:
    file = tmp_path / "settings.toml"
    changed = load_settings(overrides=["optim.lr=0.5", "store.fit=pad", more])
    file.write_text(as_toml(changed))
    assert load_settings(file) == changed
    assert changed != Settings()


def test_later_layers_win(tmp_path: Path) -> None:
    file = tmp_path / "settings.toml"
    file.write_text("[encoder]\ncrop = 96\nwidth = 0.5\n")
    s = load_settings(file, ["encoder.crop=128"], recipe="gpu")
    assert (s.encoder.crop, s.encoder.width, s.optim.batch) == (128, 0.5, 256)


@pytest.mark.parametrize("name", ["cpu", "gpu"])
def test_every_packaged_recipe_loads(name: str) -> None:
    assert as_dict(load_settings(recipe=name)).keys() == as_dict(Settings()).keys()


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("optim.lrr=1", "did you mean optim.lr?"),
        ("optim.crop=64", "did you mean encoder.crop?"),
        ("optm.lr=1", "did you mean optim?"),
        ("lr=1", "expected section.key=value"),
        ("optim.lr=fast", "optim.lr"),
        ("optim.lr=-1", "greater than 0"),
        ("optim.batch=12.5", "optim.batch"),
        ("optim.seed=9223372036854775808", "optim.seed: input should be less than or equal to"),
        ("train.threads=999999999999", "train.threads: input should be less than or equal to 1024"),
        ("buffer.capacity=999999999999999999999", "buffer.capacity"),
        ("store.fit=squeeze", "'stretch', 'crop' or 'pad'"),
        ("augment=3", "expected section.key=value"),
        ("ingest.worker_memory_mb=9999999999999999999", "worker_memory_mb: input should be less than or equal to"),
    ],
)
def test_a_wrong_setting_is_named_with_its_remedy(override: str, words: str) -> None:
    with pytest.raises(UsageError) as e:
        load_settings(overrides=[override])
    assert words in str(e.value)
    assert "\n" not in str(e.value)


def test_settings_that_do_not_go_together_are_named_with_why() -> None:
    with pytest.raises(UsageError, match=r"setting optim\.shown: must be 0 where loss\.near is segment, got 4"):
        load_settings(overrides=["loss.near=segment", "optim.shown=4"])
    assert load_settings(overrides=["loss.near=segment", "optim.shown=16"]).optim.shown == 16  # all are
    with pytest.raises(UsageError, match=r"setting loss\.near: must be time or segment where"):
        load_settings(overrides=["loss.near_positives=0.5"])


def test_a_file_that_is_not_toml_is_named(tmp_path: Path) -> None:
    file = tmp_path / "settings.toml"
    file.write_text("lr := 3")
    with pytest.raises(UsageError, match="not valid TOML"):
        load_settings(file)
    with pytest.raises(UsageError, match="No such file"):
        load_settings(tmp_path / "absent.toml")
