"""The cross-level term in the learner: local groups, persistent ones over the bank, and both."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from cld_stream.config import Settings, load_settings
from cld_stream.learn.learner import Learner
from cld_stream.learn.losses import bank_level_loss, cross_level_loss
from tests.learn.test_groups import unit_rows
from tests.learn.test_learner import SMALL, assert_resumes, differing, run, state, step


def small(kind: str, **loss: object) -> Settings:
    base = load_settings(overrides=[*SMALL, "loss.bank_groups=6", "loss.bank_refine_steps=4"])
    return replace(base, loss=replace(base.loss, cross_level=kind, **loss))  # type: ignore[arg-type]


@pytest.mark.parametrize("kind", ["bank", "both"])
def test_ten_steps_a_reload_and_ten_more_are_twenty_bit_for_bit(kind: str) -> None:
    assert_resumes(small(kind))


@pytest.mark.parametrize("kind", ["bank", "both"])
def test_a_bad_step_moves_no_group(kind: str) -> None:
    learner = Learner(small(kind))
    run(learner, 6)
    before = state(learner)
    hook = next(learner.encoder.parameters()).register_hook(lambda grad: grad * float("nan"))  # type: ignore[no-untyped-call]
    assert not step(learner, range(200, 208)).ok
    assert differing(before, state(learner)) == []
    hook.remove()


def test_every_buffered_frame_is_in_a_group_and_a_forgotten_one_in_none() -> None:
    learner = Learner(small("bank"))
    run(learner, 9)
    groups = learner.cross_level.groups
    assert groups is not None
    assert ((groups.group_M >= 0).numpy() == (learner.buffer.ids >= 0)).all()
    slots = torch.from_numpy(learner.forget(learner.buffer.ids[:3].tolist()))
    assert (groups.group_M[slots] == -1).all()
    assert int(groups.sizes().sum()) == len(learner.buffer)


def test_the_term_is_the_local_one_the_banks_or_the_mean_of_both() -> None:
    slots, nobody = torch.arange(24), torch.zeros(24, dtype=torch.bool)
    g1, g2 = unit_rows(24, 16, 0), unit_rows(24, 16, 1)
    terms = {}
    for kind in ("local", "bank", "both"):
        learner = Learner(small(kind))
        run(learner, 6)
        terms[kind] = learner.cross_level
    as_given = torch.arange(24)
    local = cross_level_loss(g1, g2, terms["local"].grouping, 0.2)
    assert torch.equal(terms["local"](g1, g2, slots, nobody, as_given), local)
    for kind, share in (("bank", 0.0), ("both", 0.5)):
        groups = terms[kind].groups
        assert groups is not None
        labels = groups.group_M[slots]
        bank = bank_level_loss(g1, g2, labels, labels, groups.centroids(), 0.2)
        torch.testing.assert_close(terms[kind](g1, g2, slots, nobody, as_given), share * local + (1 - share) * bank)


def test_local_groups_start_from_rows_in_another_order_each_step() -> None:
    """Fresh frames come first in a batch, and are often near-repeats."""

    def starts() -> list[int]:
        learner, found = Learner(small("local")), []
        grouping = learner.cross_level.grouping

        def noting(x_ND: Tensor) -> tuple[Tensor, Tensor]:
            found.append(x_ND)
            return grouping(x_ND)

        learner.cross_level.grouping = noting
        run(learner, 4)
        features = step(learner, range(300, 308)).group_features
        rows_N = (found[-2] @ features.T).argmax(1)
        torch.testing.assert_close(found[-2], features[rows_N])  # of the first view
        return rows_N.tolist()

    order, again = starts(), starts()
    assert order == again  # a function of seed and clock
    assert order != sorted(order) == list(range(24))


def test_a_newborn_frame_must_find_the_group_of_its_other_view() -> None:
    learner = Learner(small("bank"))
    run(learner, 6)
    groups = learner.cross_level.groups
    assert groups is not None
    g1, g2 = unit_rows(5, 16, 2), unit_rows(5, 16, 3)
    slots, newborn = torch.tensor([0, 1, 2, -1, -1]), torch.tensor([True, True, False, False, False])
    labels1, labels2 = groups.predict(g2), groups.predict(g1)
    labels1[2] = labels2[2] = groups.group_M[2]
    expected = bank_level_loss(g1, g2, labels1, labels2, groups.centroids(), 0.2)
    torch.testing.assert_close(learner.cross_level(g1, g2, slots, newborn, torch.arange(5)), expected)


def test_before_the_first_step_there_is_no_bank_term() -> None:
    report = step(Learner(small("bank")), range(8))
    assert report.cld == 0
    assert report.ok
