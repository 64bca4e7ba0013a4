"""Every packaged recipe: it loads, it is what `train` can use, and its learner takes a step."""

import tomllib
from dataclasses import replace
from importlib import resources

import pytest
import torch

from cld_stream.config import Settings, as_dict, load_settings
from cld_stream.learn.learner import Learner

FOLDER = resources.files("cld_stream").joinpath("recipes")
RECIPES = sorted(f.name.removesuffix(".toml") for f in FOLDER.iterdir())
METHODS = {"npid": "npid", "moco": "moco", "infomin": "moco", "byol": "byol", "simclr": "simclr"}


def shrunken(s: Settings) -> Settings:
    """The same method with little to compute: size, width, batch and memories."""
    return replace(
        s,
        encoder=replace(s.encoder, width=0.125, crop=16, feature_dim=16),
        loss=replace(s.loss, groups=max(2, round(12 * s.loss.groups / s.optim.batch)), queue=24),
        buffer=replace(s.buffer, capacity=32),
        optim=replace(s.optim, batch=12, fresh=4, amp="never"),
    )


def test_there_is_a_recipe_for_every_method_and_size() -> None:
    assert set(RECIPES) == {
        "stream",
        "cpu",
        "gpu",
        *(f"{name}-cld-{size}" for name in METHODS for size in (32, 96, 160)),
    }


@pytest.mark.parametrize("name", RECIPES)
def test_the_learner_of_a_recipe_takes_a_finite_step(name: str) -> None:
    learner = Learner(shrunken(load_settings(recipe=name)))
    learner.remember(range(20))
    pixels = torch.randint(0, 256, (12, 20, 20, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    for first in (20, 24):
        report = learner.step(learner.plan(range(first, first + 4)), pixels, torch.ones(12))
        assert report.ok
        assert report.cld > 0
    assert learner.updates == 2


@pytest.mark.parametrize("name", [n for n in RECIPES if "-" in n])
def test_a_recipe_is_what_its_name_says_and_fits_a_stream(name: str) -> None:
    method, _, size = name.split("-")
    s = load_settings(recipe=name)
    assert s.loss.branch == METHODS[method]
    assert s.store.size == s.encoder.crop == int(size)
    assert s.loss.cld_weight > 0
    assert s.optim.batch / 2 <= s.loss.groups < s.optim.batch
    assert s.optim.schedule == "constant"
    if s.loss.branch == "moco":  # a queue of whole batches, not longer than the memory that it is drawn from
        assert s.loss.queue % s.optim.batch == 0
        assert 2 * s.optim.batch <= s.loss.queue <= s.buffer.capacity / 4


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_holds_only_what_differs_from_the_defaults(name: str) -> None:
    defaults = as_dict(Settings())
    for section, values in tomllib.loads(FOLDER.joinpath(f"{name}.toml").read_text()).items():
        for key, value in values.items():
            assert value != defaults[section][key], f"{section}.{key} is the default"
