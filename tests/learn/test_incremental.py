import math
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.overrides import TorchFunctionMode

from cld_stream.learn.bank import MemoryBank
from cld_stream.learn.groups import local_kmeans, segment_means
from cld_stream.learn.incremental import IncrementalKMeans, _moves
from cld_stream.learn.losses import bank_level_loss
from tests.learn.test_groups import unit_rows
from tests.learn.test_losses import discrimination
from tests.products import Products

seeds = st.integers(0, 10**6)


def rng(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def clusters(centres_KD: Tensor, sizes: list[int], seed: int, noise: float = 0.2) -> Tensor:
    """Unit rows around the centres, one cluster after the other."""
    picked = centres_KD[torch.arange(len(sizes)).repeat_interleave(torch.tensor(sizes))]
    return F.normalize(picked + noise * unit_rows(len(picked), centres_KD.shape[1], seed), dim=1)


def axes(n: int, dim: int = 16) -> Tensor:
    return torch.eye(dim)[:n]


def settled(x: Tensor, k: int, *, spare_slots: int = 0, rounds: int = 3) -> IncrementalKMeans:
    """Groups refined on these rows, in slots 0, 1, 2, ..."""
    groups = IncrementalKMeans(k, x.shape[1], len(x) + spare_slots)
    refine(groups, x, rounds=rounds)
    return groups


def refine(groups: IncrementalKMeans, x: Tensor, seed: int = 0, rounds: int = 1) -> None:
    slots = len(groups.group_M)
    rows = F.pad(x, (0, 0, 0, slots - len(x)))
    groups.refine(rows, torch.arange(slots) < len(x), rng(seed), rounds)


def objective(groups: IncrementalKMeans, x: Tensor) -> float:
    return float(1 - (x @ groups.centroids().T).amax(1).mean())


def identities(groups: IncrementalKMeans, slots: slice) -> set[int]:
    return set(groups.identity_K[groups.group_M[slots]].tolist())


@settings(max_examples=30, deadline=None)
@given(st.data(), st.integers(1, 6), st.integers(5, 8), seeds)
def test_an_online_update_is_the_running_mean_of_each_group(data: st.DataObject, k: int, dim: int, seed: int) -> None:
    slots = 12
    groups = IncrementalKMeans(k, dim, slots)
    means: list[Tensor] = []
    label: dict[int, int] = {}
    for step in range(data.draw(st.integers(1, 5))):
        where = data.draw(st.lists(st.integers(0, slots - 1), unique=True, min_size=1))
        x = unit_rows(len(where), dim, seed + step)
        groups.partial_fit(x, torch.tensor(where))
        if not means:
            means = [x[i] for i in range(min(k, len(x)))]
        for slot in where:
            label.pop(slot, None)
        found = [max(range(len(means)), key=lambda j: float(x[i] @ means[j] / means[j].norm())) for i in range(len(x))]
        label |= dict(zip(where, found, strict=True))
        for j in range(len(means)):
            rows = [x[i] for i in range(len(x)) if found[i] == j]
            if rows:
                share = len(rows) / sum(g == j for g in label.values())
                means[j] = (1 - share) * means[j] + share * torch.stack(rows).mean(0)
    assert groups.group_M.tolist() == [label.get(slot, -1) for slot in range(slots)]
    torch.testing.assert_close(groups.means_KD, torch.stack(means), atol=1e-5, rtol=1e-5)


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 40), st.integers(2, 6), st.integers(1, 9), seeds)
def test_after_a_refinement_every_live_row_has_a_group_and_every_group_the_mean_of_its_rows(
    n: int, dim: int, k: int, seed: int
) -> None:
    x = unit_rows(n, dim, seed)
    groups = settled(x, k, spare_slots=3)
    assert groups.group_M[n:].tolist() == [-1, -1, -1]
    for j in range(len(groups)):
        rows = [x[i] for i in range(n) if groups.group_M[i] == j]
        if rows:
            torch.testing.assert_close(groups.means_KD[j], torch.stack(rows).mean(0))
    assert 1 <= len(groups) <= min(k, n)
    assert len(set(groups.identity_K.tolist())) == len(groups)
    assert max(groups.identity_K.tolist()) < groups.opened


@pytest.mark.parametrize("rounds", [1, 3])
def test_without_anything_to_move_a_refinement_is_spherical_kmeans_from_where_the_groups_stand(rounds: int) -> None:
    groups = settled(clusters(axes(4), [30, 30, 30, 30], 3), 4)
    before = groups.identity_K.tolist()
    x = clusters(axes(4) + 0.4, [30, 30, 30, 30], 4, noise=0.9)
    means = list(groups.means_KD)
    for _ in range(rounds + 1):
        found = [max(range(4), key=lambda j: float(row @ means[j] / means[j].norm())) for row in x]
        means = [torch.stack([x[i] for i in range(120) if found[i] == j]).mean(0) for j in range(4)]
    refine(groups, x, rounds=rounds)
    torch.testing.assert_close(groups.means_KD, torch.stack(means))
    assert groups.group_M.tolist() == found
    assert groups.identity_K.tolist() == before


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 50), st.integers(1, 12), seeds)
def test_means_by_segments_are_the_means_of_the_groups(n: int, k: int, seed: int) -> None:
    x, labels = unit_rows(n, 4, seed), torch.randint(k, (n,), generator=rng(seed))
    means = segment_means(x, labels, k)
    for j in range(k):
        rows = x[labels == j]
        torch.testing.assert_close(means[j], rows.mean(0) if len(rows) else torch.zeros(4))


def test_every_cluster_gets_a_group_of_its_own_whatever_its_size() -> None:
    sizes = [400, 200, 100, 50, 25, 12, 6, 6]
    x = clusters(axes(8), sizes, 0)
    groups = settled(x, 8, rounds=10)
    start = 0
    for size in sizes:
        assert len(identities(groups, slice(start, start + size))) == 1
        start += size
    assert sorted(groups.sizes().tolist(), reverse=True) == sizes


def test_a_group_keeps_its_identity_while_its_cluster_drifts_a_long_way() -> None:
    start, end = axes(6), axes(12)[6:]
    groups = IncrementalKMeans(6, 16, 240)
    rows, live = torch.zeros(240, 16), torch.zeros(240, dtype=torch.bool)
    first: list[set[int]] = []
    opened = 0
    for step in range(120):
        angle = math.pi / 2 * step / 119
        x = clusters(math.cos(angle) * start + math.sin(angle) * end, [4] * 6, step)
        slots = torch.arange(6).repeat_interleave(4) * 40 + torch.arange(4).repeat(6) + step % 10 * 4
        rows[slots], live[slots] = x, True
        groups.partial_fit(x, slots)
        if step % 10 == 9:
            groups.refine(rows, live, rng(step))
            now = [identities(groups, slice(40 * c, 40 * c + 40)) for c in range(6)]
            first, opened = first or now, opened or groups.opened
            assert now == first
    assert all(len(held) == 1 for held in first)
    assert groups.opened == opened


def test_online_updates_alone_follow_a_cluster_from_row_to_row() -> None:
    groups = settled(clusters(axes(2), [20, 20], 0), 2)
    for step in range(60):
        angle = math.pi / 2 * step / 59
        x = clusters(math.cos(angle) * axes(1) + math.sin(angle) * axes(3)[2:], [4], step)
        groups.partial_fit(x, torch.arange(4) + step % 5 * 4)
    here = int(groups.predict(axes(3)[2:]))
    assert float(groups.centroids()[here, 2]) > 0.95
    assert float(groups.centroids()[1 - here, 1]) > 0.95


def test_a_dead_group_is_given_to_a_new_cluster_under_a_new_identity() -> None:
    x = clusters(axes(4), [30] * 4, 0)
    groups = settled(x, 4)
    before = [identities(groups, slice(30 * c, 30 * c + 30)) for c in range(4)]
    x = torch.cat([x[:90], clusters(axes(5)[4:], [30], 1)])  # the fourth cluster is gone, a fifth has come
    for seed in range(3):
        refine(groups, x, seed)
    after = [identities(groups, slice(30 * c, 30 * c + 30)) for c in range(4)]
    assert after[:3] == before[:3]
    assert after[3].isdisjoint(set().union(*before))
    assert groups.sizes().tolist() == [30] * 4


def test_a_crowded_group_is_split_at_the_cost_of_two_that_share_a_cluster() -> None:
    x = clusters(axes(4), [60, 60, 60, 60], 0)
    groups = IncrementalKMeans(4, 16, 240)
    # two groups on the first cluster, one on the second, one between the third and the fourth
    crowded = torch.stack([x[0], x[1], axes(4)[1], F.normalize(axes(4)[2] + axes(4)[3], dim=0)])
    groups.load_state_dict(groups.state_dict() | {
        "means": crowded, "anchor": crowded, "identity": torch.arange(4), "opened": torch.tensor(4)
    })  # fmt: skip
    for seed in range(4):
        refine(groups, x, seed)
    held = [identities(groups, slice(60 * c, 60 * c + 60)) for c in range(4)]
    assert sorted(len(h) for h in held) == [1, 1, 1, 1]
    assert len(set().union(*held)) == 4
    assert held[1] == {2}
    assert held[0] in ({0}, {1})
    assert {3, 4} == held[2] | held[3]
    assert groups.opened == 5


def test_the_half_that_stands_where_the_group_stood_keeps_its_identity_even_if_it_is_the_smaller_one() -> None:
    old, new = clusters(axes(1), [20], 0), clusters(axes(2)[1:], [60], 1)
    groups = IncrementalKMeans(2, 16, 80, rows_per_group=20)
    refine(groups, old)
    assert identities(groups, slice(0, 20)) == {0}
    refine(groups, torch.cat([old, new]))
    assert identities(groups, slice(0, 20)) == {0}
    assert identities(groups, slice(20, 80)) == {1}


def test_of_two_groups_that_inherit_from_each_other_only_one_is_given_up() -> None:
    gain, cost, heir = [9.0, 8.0, 0.0, 0.0, 0.0], [50.0, 50.0, 1.0, 2.0, 3.0], [1, 0, 3, 2, 2]
    assert _moves(gain, cost, heir, spare=0) == [(0, 2)]  # 3 inherits from 2, and 4 would leave its rows to 2
    assert _moves(gain, cost, [1, 0, 3, 2, 0], spare=0) == [(0, 2), (1, 4)]
    assert _moves(gain, cost, heir, spare=1) == [(0, 5), (1, 2)]


def test_the_number_of_groups_grows_with_the_rows_up_to_the_most() -> None:
    groups = IncrementalKMeans(10, 8, 400, rows_per_group=20)
    found = []
    for n in (10, 40, 100, 200, 400):
        refine(groups, unit_rows(n, 8, 0))
        found.append(len(groups))
    assert found == [1, 2, 5, 10, 10]
    assert groups.opened >= 10


def test_a_first_batch_starts_with_as_many_of_its_rows_as_there_may_be_groups() -> None:
    x = unit_rows(40, 8, 0)
    groups = IncrementalKMeans(10, 8, 40, rows_per_group=8)
    groups.partial_fit(x, torch.arange(40))
    assert len(groups) == 5
    assert groups.group_M[:5].tolist() == [0, 1, 2, 3, 4]
    assert int(groups.sizes().sum()) == 40


@settings(max_examples=60, deadline=None)
@given(st.data(), seeds)
def test_sizes_are_those_of_the_live_rows_whatever_comes_and_goes(data: st.DataObject, seed: int) -> None:
    capacity, dim = 10, 4
    bank, groups = MemoryBank(capacity, dim, 0.5), IncrementalKMeans(4, dim, capacity, rows_per_group=2)
    for step in range(data.draw(st.integers(1, 8))):
        slots = torch.tensor(data.draw(st.lists(st.integers(0, capacity - 1), unique=True)), dtype=torch.int64)
        act = data.draw(st.sampled_from(["fill", "update", "kill", "refine"]))
        if act == "fill":
            bank.fill(slots, unit_rows(len(slots), dim, seed + step))
            groups.partial_fit(bank.rows_MD[slots], slots)
        elif act == "update":
            slots = slots[bank.live_M[slots]]
            f1, f2 = (unit_rows(len(slots), dim, seed + 50 * v + step) for v in (1, 2))
            bank.update(slots, f1, f2)
            groups.partial_fit(bank.rows_MD[slots], slots)
        elif act == "kill":
            bank.kill(slots)
            groups.forget(slots)
        else:
            groups.refine(bank.rows_MD, bank.live_M, rng(step))
        assert torch.equal(groups.group_M >= 0, bank.live_M)
        assert int(groups.sizes().sum()) == int(bank.live_M.sum())
        assert groups.sizes().tolist() == [int((groups.group_M == j).sum()) for j in range(len(groups))]
        assert groups.means_KD.isfinite().all()


def live_through(groups: IncrementalKMeans, steps: range) -> IncrementalKMeans:
    """The same stream for everyone; bank and randomness are functions of the step."""
    for step in steps:
        x = clusters(axes(7), [3] * 7, step, noise=0.8)
        slots = torch.randperm(60, generator=rng(step))[: len(x)]
        groups.partial_fit(x, slots)
        groups.forget(slots[:2])
        if step % 3 == 2:
            groups.refine(clusters(axes(6), [10] * 6, step, noise=0.8), torch.arange(60) % 7 > 0, rng(step))
    return groups


def same(one: IncrementalKMeans, other: IncrementalKMeans) -> bool:
    return all(torch.equal(a, b) for a, b in zip(one.state_dict().values(), other.state_dict().values(), strict=True))


def test_twenty_steps_are_ten_saved_loaded_and_ten_more_bit_for_bit(tmp_path: Path) -> None:
    whole = live_through(IncrementalKMeans(9, 16, 60), range(20))
    half = live_through(IncrementalKMeans(9, 16, 60), range(10))
    torch.save(half.state_dict(), tmp_path / "groups")
    twin = IncrementalKMeans(9, 16, 60)
    twin.load_state_dict(torch.load(tmp_path / "groups", weights_only=True))
    assert same(live_through(twin, range(10, 20)), whole)
    assert not same(half, whole)
    assert twin.opened == whole.opened > 9


def test_a_loaded_state_is_a_copy() -> None:
    groups = settled(unit_rows(20, 4, 0), 3)
    twin = IncrementalKMeans(3, 4, 20)
    twin.load_state_dict(groups.state_dict())
    twin.forget(torch.arange(20))
    assert int(groups.sizes().sum()) == 20


@pytest.mark.parametrize("shape", [(3, 4, 21), (3, 5, 20), (2, 4, 20)])
def test_a_state_of_another_shape_is_refused(shape: tuple[int, int, int]) -> None:
    with pytest.raises(ValueError, match="saved groups are 3 x 4 over 20 slots"):
        IncrementalKMeans(*shape).load_state_dict(settled(unit_rows(20, 4, 0), 3).state_dict())


def test_neither_another_generator_nor_global_state_matters_where_nothing_is_drawn() -> None:
    x = clusters(axes(5), [20] * 5, 0)
    torch.manual_seed(1)
    one = settled(x, 5)
    torch.manual_seed(2)
    other = settled(x, 5)
    assert same(one, other)


def test_the_order_of_the_slots_does_not_matter_to_settled_groups() -> None:
    x, order = clusters(axes(5), [20] * 5, 0), torch.randperm(100, generator=rng(1))
    groups = settled(x, 5)
    twin = IncrementalKMeans(5, 16, 100)
    twin.load_state_dict(groups.state_dict())
    refine(groups, x)
    refine(twin, x[order])
    assert torch.equal(twin.group_M, groups.group_M[order])
    torch.testing.assert_close(twin.means_KD, groups.means_KD)


@pytest.mark.parametrize("act", ["partial_fit", "refine"])
@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_rows_that_are_not_finite_never_enter_the_state(act: str, bad: float) -> None:
    x = clusters(axes(4), [10] * 4, 0)
    groups = settled(x, 4)
    clean = IncrementalKMeans(4, 16, 40)
    clean.load_state_dict(groups.state_dict())
    spoilt = x.clone()
    spoilt[7, 3] = bad
    rest = torch.arange(40) != 7
    if act == "refine":
        groups.refine(spoilt, torch.ones(40, dtype=torch.bool), rng())
        clean.refine(x, rest, rng())
    else:
        groups.partial_fit(spoilt, torch.arange(40))
        clean.forget(torch.tensor([7]))
        clean.partial_fit(x[rest], torch.arange(40)[rest])
    assert same(groups, clean)
    assert int(groups.group_M[7]) == -1


def test_nothing_but_bad_rows_starts_no_group() -> None:
    groups = IncrementalKMeans(3, 4, 5)
    groups.partial_fit(torch.full((2, 4), math.nan), torch.tensor([0, 1]))
    groups.refine(torch.full((5, 4), math.nan), torch.ones(5, dtype=torch.bool), rng())
    groups.partial_fit(torch.zeros(0, 4), torch.zeros(0, dtype=torch.int64))
    assert len(groups) == groups.opened == 0
    assert groups.predict(unit_rows(3, 4, 0)).tolist() == [-1, -1, -1]
    assert groups.sizes().tolist() == []
    assert groups.centroids().shape == (0, 4)


def test_one_row_is_one_group() -> None:
    groups = settled(unit_rows(1, 4, 0), 8)
    torch.testing.assert_close(groups.centroids(), unit_rows(1, 4, 0))
    assert groups.sizes().tolist() == [1]


@settings(max_examples=20, deadline=None)
@given(st.integers(1, 5), st.integers(1, 6), st.integers(1, 40), seeds)
def test_there_are_no_more_groups_than_different_rows(different: int, copies: int, k: int, seed: int) -> None:
    x = unit_rows(different, 8, seed).repeat(copies, 1)
    groups = settled(x, k)
    online = IncrementalKMeans(k, 8, len(x))
    online.partial_fit(x, torch.arange(len(x)))
    assert len(groups) == len(online) == min(k, different)
    if k >= different:
        assert objective(groups, x) == pytest.approx(0, abs=1e-5)


def test_opposite_rows_that_cancel_leave_a_centroid_of_length_zero_and_nothing_worse() -> None:
    x = torch.cat([axes(1), -axes(1)])
    groups = settled(x, 1)
    assert groups.centroids().abs().max() < 1e-6
    assert groups.group_M.tolist() == [0, 0]
    assert len(settled(x, 2)) == 2


def test_groups_come_close_to_kmeans_from_many_starts() -> None:
    from sklearn.cluster import KMeans

    sizes = [200, 120, 80, 60, 40, 30, 20, 20, 10, 10, 8, 8]
    x = clusters(unit_rows(len(sizes), 16, 1), sizes, 2, noise=0.6)
    groups = settled(x, 16, rounds=8)
    best = KMeans(16, n_init=10, random_state=0).fit(x.numpy())
    centroids = F.normalize(torch.from_numpy(best.cluster_centers_).float(), dim=1)
    assert objective(groups, x) < 1.03 * float(1 - (x @ centroids.T).amax(1).mean())


def test_labels_come_from_the_slots_own_row_and_else_from_the_nearest_centroid() -> None:
    groups = settled(clusters(axes(3), [10] * 3, 0), 3)
    groups.forget(torch.tensor([5]))
    x = axes(3)[torch.tensor([1, 1, 1])]
    expected = [int(groups.group_M[0]), *groups.predict(x[1:]).tolist()]
    state = {name: tensor.clone() for name, tensor in groups.state_dict().items()}
    assert groups.group_of(torch.tensor([0, -1, 5]), x).tolist() == expected
    assert expected[0] != expected[1]
    assert all(torch.equal(state[name], tensor) for name, tensor in groups.state_dict().items())


def test_groups_stay_in_float32_under_autocast() -> None:
    plain = live_through(IncrementalKMeans(9, 16, 60), range(6))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        cast = live_through(IncrementalKMeans(9, 16, 60), range(6))
    assert same(plain, cast)
    assert cast.means_KD.dtype == torch.float32


class Largest(TorchFunctionMode):
    """Elements of the largest tensor that any call gives."""

    numel = 0

    def __torch_function__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        result = func(*args, **kwargs or {})
        if isinstance(result, Tensor):
            self.numel = max(self.numel, result.numel())
        return result


def test_no_tensor_of_rows_times_groups_times_width_is_ever_made() -> None:
    n, k, d = 300, 40, 32
    x = unit_rows(n, d, 0)
    with Largest() as largest:
        local_kmeans(x, k, 3)
        groups = settled(x, k)
        groups.partial_fit(x, torch.arange(n))
    assert n * d <= largest.numel <= 2 * n * k  # rows of a product are filled up to a power of two


def test_as_the_bank_fills_products_come_in_few_sizes() -> None:
    x = unit_rows(500, 32, 0)
    groups = IncrementalKMeans(8, 32, 500)
    groups.refine(x, torch.arange(500) < 257, rng(), 3)
    with Products() as products:
        for live in range(257, 500, 9):
            groups.refine(x, torch.arange(500) < live, rng())
            groups.partial_fit(x[:live], torch.arange(live))
    assert products.sizes == {((512, 32), (32, 8)), ((8, 32), (32, 8))}


@pytest.mark.parametrize("numbers", [(0, 1), (3, 0)])
def test_no_groups_at_all_are_refused(numbers: tuple[int, int]) -> None:
    with pytest.raises(ValueError, match="must be >= 1"):
        IncrementalKMeans(numbers[0], 4, 5, rows_per_group=numbers[1])


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 8), st.integers(1, 9), seeds)
def test_bank_level_loss_is_the_papers_equation_with_the_groups_of_the_bank(n: int, k: int, seed: int) -> None:
    g, centroids = (unit_rows(n, 5, seed), unit_rows(n, 5, seed + 1)), unit_rows(k, 5, seed + 2)
    labels = torch.randint(k, (2, n), generator=rng(seed))
    expected = 0.0
    for view in (0, 1):
        for i in range(n):
            others = [centroids[j] for j in range(k) if j != labels[view, i]]
            expected += discrimination(g[view][i], centroids[labels[view, i]], others, 0.2) / (2 * n)
    assert float(bank_level_loss(g[0], g[1], labels[0], labels[1], centroids, 0.2)) == pytest.approx(expected, abs=1e-5)


def test_bank_level_loss_pulls_the_views_alone_along_its_slope() -> None:
    g1, g2 = (unit_rows(3, 4, seed).double().requires_grad_() for seed in (0, 1))
    centroids = unit_rows(5, 4, 2).requires_grad_()
    labels = torch.tensor([0, 3, 3]), torch.tensor([0, 3, 1])
    loss = bank_level_loss(g1, g2, *labels, centroids, 0.2)
    grad1, grad2, *others = torch.autograd.grad(loss, (g1, g2, centroids), allow_unused=True)
    assert others == [None]
    for g, grad, centroid_labels in ((g1, grad1, labels[0]), (g2, grad2, labels[1])):
        # d C / d f = (sum_j p_j B_j - B_label) / T, and the mean over views and frames
        p = torch.softmax(g.detach().float() @ centroids.detach().T / 0.2, 1)
        expected = (p @ centroids.detach() - centroids.detach()[centroid_labels]) / (0.2 * 2 * 3)
        torch.testing.assert_close(grad.float(), expected, atol=1e-5, rtol=1e-4)


def test_bank_level_loss_stays_in_float32_under_autocast() -> None:
    g, centroids, labels = unit_rows(8, 16, 0), unit_rows(5, 16, 1), torch.arange(8) % 5
    plain = bank_level_loss(g, g, labels, labels, centroids, 0.2)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert bank_level_loss(g, g, labels, labels, centroids, 0.2) == plain
