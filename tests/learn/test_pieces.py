"""A step in pieces against the undivided one, and a step that runs out of memory: the allocator's own error."""

import weakref
from dataclasses import replace
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from cld_stream.config import Settings, load_settings
from cld_stream.errors import DeviceFullError
from cld_stream.learn.encoder import Encoder
from cld_stream.learn.learner import Learner
from cld_stream.learn.pieces import LEAST, Pieces, out_of_memory
from tests.learn.test_branches import KINDS, small
from tests.learn.test_learner import SMALL, differing, run, state, step


def take_too_much() -> None:
    """Raises what the allocator raises."""
    torch.empty(1 << 50)


def no_room_for(module: nn.Module, views: int) -> Any:
    """From now on memory does not hold more views at a time than these; gives what ends it."""

    def hook(_module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        if len(inputs[0]) > views:
            take_too_much()

    return module.register_forward_pre_hook(hook)


def no_room_for_gradients(learner: Learner, views: int) -> Any:
    """The same, but memory runs out late in the backward pass, when there are gradients already."""

    def check(grad: Tensor) -> None:
        if len(grad) > views:
            take_too_much()

    def hook(_module: nn.Module, _inputs: object, out: Tensor) -> None:
        if out.requires_grad:
            out.register_hook(check)  # type: ignore[no-untyped-call]

    return learner.encoder.get_submodule("backbone.conv1").register_forward_hook(hook)


@given(st.integers(0, 600), st.none() | st.integers(1, 300))
def test_pieces_are_equal_in_order_and_no_larger_than_allowed(n: int, frames: int | None) -> None:
    pieces = Pieces(frames).of(n)
    assert [i for piece in pieces for i in range(n)[piece]] == list(range(n))
    sizes = [piece.stop - piece.start for piece in pieces]
    assert max(sizes, default=0) <= (frames or n)
    assert max(sizes, default=0) - min(sizes, default=0) <= 1
    assert len(pieces) == (-(-n // frames) if frames else min(n, 1))


@pytest.mark.parametrize(("branch", "negatives"), KINDS)
@pytest.mark.parametrize("align", ["none", "bank", "ema"])
def test_without_batch_norm_a_step_in_pieces_is_the_undivided_one(branch: str, negatives: int, align: str) -> None:
    """From the same state: later on, rounding moves a frame from one local group to another now and then."""
    settings = small(branch, negatives, align=align)
    settings = replace(
        settings,
        encoder=replace(settings.encoder, norm="group"),
        buffer=replace(settings.buffer, policy="minred"),  # takes looks
    )
    whole, parts = Learner(settings), Learner(settings)
    parts.pieces.frames = 9  # 24 frames in three pieces of eight
    for i in range(4):
        parts.load_state_dict(*whole.state_dict())
        reports = [step(one, range(8 * i, 8 * i + 8)) for one in (whole, parts)]
        assert reports[1].loss == pytest.approx(reports[0].loss, rel=1e-5)
    found = state(parts)
    for name, expected in state(whole).items():
        other = found[name] != expected
        if other.any():
            assert expected.dtype.kind == "f", name
            gap = np.linalg.norm(found[name][other] - expected[other])
            assert gap < 1e-4 * max(float(np.linalg.norm(expected)), 1e-3), name


def test_each_view_of_a_frame_is_in_the_same_piece() -> None:
    views = torch.arange(2 * 6).view(2, 6, 1, 1, 1).expand(2, 6, 3, 4, 4).float()
    seen = []

    def network(x: Tensor) -> tuple[Tensor, Tensor]:
        seen.append(x[:, 0, 0, 0].int().tolist())
        return x[:, :2, 0, 0], x[:, :, 0, 0]

    f, g = Pieces(4).through(network, views)
    assert seen == [[0, 1, 2, 6, 7, 8], [3, 4, 5, 9, 10, 11]]
    assert (f.shape, g.shape) == ((2, 6, 2), (2, 6, 3))
    assert torch.equal(f[..., 0], views[..., 0, 0, 0])


def test_batch_norm_takes_the_statistics_of_a_piece_and_training_stays_sound() -> None:
    settings = small("byol", align="ema")
    learner = Learner(settings)
    learner.pieces.frames = 8
    assert torch.tensor(run(learner, 12)).isfinite().all()
    second = Learner(settings)
    second.pieces.frames = 8
    run(second, 6)
    third = Learner(settings)
    third.pieces.frames = 8
    third.load_state_dict(*second.state_dict())
    run(third, 6, start=48)
    assert differing(state(learner), state(third)) == [], "bit for bit, in pieces of the same size"


@pytest.mark.parametrize(("branch", "negatives"), KINDS)
@pytest.mark.parametrize("late", [False, True])
def test_a_step_that_runs_out_of_memory_is_the_step_in_smaller_pieces(
    branch: str, negatives: int, late: bool, caplog: pytest.LogCaptureFixture
) -> None:
    settings = small(branch, negatives, align="ema")
    settings = replace(settings, augment=replace(settings.augment, erase=0.5, blur=0.5))
    learner, expected = Learner(settings), Learner(settings)
    for one in (learner, expected):
        run(one, 6)
    if late:
        no_room_for_gradients(learner, 24)
    else:
        no_room_for(learner.encoder, 24)
    expected.pieces.frames = 12
    reports = [step(one, range(48, 56)) for one in (learner, expected)]
    assert learner.pieces.frames == 12
    assert reports[0].loss == reports[1].loss
    assert differing(state(learner), state(expected)) == []
    (line,) = [r.getMessage() for r in caplog.records]
    assert line.startswith(
        "step 6, a batch of 24 frames on cpu: out of memory with 24 frames at a time: can't allocate"
    )
    assert "from now on 12 at a time" in line
    assert "--set optim.batch=12 with optim.fresh below it" in line
    step(learner, range(56, 64))
    assert len(caplog.records) == 1, "it is remembered"


class _Token(torch.autograd.Function):
    """Leaves a token on the graph, by which it is seen whether the graph is still held."""

    made: ClassVar[list[weakref.ref[Any]]] = []

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.token = Settings()
        _Token.made.append(weakref.ref(ctx.token))
        return x.clone()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        return grad


def test_nothing_of_a_backward_pass_that_failed_is_held_while_it_is_done_again() -> None:
    """A network with two branches: on a CPU torch holds the task of the one that it did not come to."""
    held: list[int] = []

    def work() -> None:
        held.append(sum(token() is not None for token in _Token.made))
        x: Tensor = _Token.apply(torch.ones(4, requires_grad=True))
        first, second = x.sin(), x.exp()
        if len(held) == 1:
            second.register_hook(lambda _: take_too_much())  # type: ignore[no-untyped-call]
        (first.sum() + second.sum()).backward()  # type: ignore[no-untyped-call]

    _Token.made.clear()
    Pieces().attempt(work, 16, "a test")
    assert held == [0, 0]


@pytest.mark.parametrize("late", [False, True])
def test_where_the_least_does_not_fit_nothing_is_changed(late: bool) -> None:
    learner = Learner(small("moco", align="ema"))
    run(learner, 6)
    before, clock = state(learner), learner.clock
    left: list[bool] = []
    learner.encoder.register_forward_pre_hook(
        lambda *_: left.append(any(p.grad is not None for p in learner.encoder.parameters()))
    )
    ends = no_room_for_gradients(learner, 4) if late else no_room_for(learner.encoder, 4)
    with pytest.raises(DeviceFullError, match=f"even with {LEAST} frames at a time: can't allocate memory") as raised:
        step(learner, range(48, 56))
    assert "--set" in str(raised.value)
    assert "\n" not in str(raised.value)
    assert differing(before, state(learner)) == []
    assert learner.clock == clock
    assert not any(left), "gradients take memory, too"
    ends.remove()
    twin = Learner(small("moco", align="ema"))
    run(twin, 6)
    twin.pieces.frames = LEAST
    assert step(learner, range(48, 56)).loss == step(twin, range(48, 56)).loss, "the same plan, the same views"


def test_key_and_target_encoders_and_looks_go_in_pieces_too(settings: Settings) -> None:
    for branch in ("moco", "byol"):
        one = small(branch, align="ema")
        learner = Learner(replace(one, buffer=replace(one.buffer, policy="minred"), optim=replace(one.optim, fresh=24)))
        learner.pieces.frames = 8
        assert learner.alignment is not None
        encoders = [m for part in (learner.branch, learner.alignment) for m in part.modules() if isinstance(m, Encoder)]
        assert len(encoders) == 2
        for encoder in (learner.encoder, *encoders):
            no_room_for(encoder, 16)
        assert step(learner, range(24)).ok
        assert learner.pieces.frames == 8
        learner.publishable([(torch.zeros(24, 20, 20, 3, dtype=torch.uint8), torch.ones(24))])


@pytest.fixture
def settings() -> Settings:
    return load_settings(overrides=SMALL)


def test_what_runs_out_behind_the_gradient_is_no_step_to_do_again(settings: Settings) -> None:
    learner = Learner(settings)
    learner.descent._optimiser.register_step_post_hook(lambda *_: take_too_much())
    with pytest.raises(RuntimeError, match="can't allocate memory"):
        step(learner, range(8))
    assert learner.pieces.frames is None


def test_another_error_is_not_taken_for_a_lack_of_memory(settings: Settings) -> None:
    learner = Learner(settings)
    learner.encoder.register_forward_pre_hook(lambda *_: torch.zeros(2) @ torch.zeros(3) and None)
    with pytest.raises(RuntimeError, match="inconsistent tensor size"):
        step(learner, range(8))


@pytest.mark.parametrize(
    ("error", "why"),
    [
        (
            torch.OutOfMemoryError(
                "CUDA out of memory. Tried to allocate 20.00 MiB. GPU 0 has a total capacity of 79.10 GiB of which 1 "
                "MiB is free. Process 12 has 70.00 GiB memory in use. Of the allocated memory 8 GiB is allocated by\nX"
            ),
            "CUDA out of memory. Tried to allocate 20.00 MiB. GPU 0 has a total capacity of 79.10 GiB of which 1 MiB "
            "is free. Process 12 has 70.00 GiB memory in use",
        ),
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"), "CUDA error"),
        (RuntimeError("GET was unable to find an engine to execute this computation"), "GET was unable"),
        (RuntimeError("could not create a primitive"), "could not create a primitive"),
        (MemoryError(), "no memory is left"),
        (RuntimeError("mat1 and mat2 shapes cannot be multiplied"), None),
        (RuntimeError("CUDA error: an illegal memory access was encountered"), None),
    ],
)
def test_what_allocators_say_is_told_in_a_line(error: Exception, why: str | None) -> None:
    said = out_of_memory(error)
    assert said == why if why is None else said is not None and said.startswith(why)
