import math
from collections import Counter

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import average_precision_score, normalized_mutual_info_score
from sklearn.preprocessing import StandardScaler

from cld_stream.config import EncoderSettings
from cld_stream.learn.augment import central_view
from cld_stream.learn.encoder import build_encoder
from cld_stream.learn.probes import (
    PENALTIES,
    alignment,
    choose_labelled,
    effective_rank,
    feature_std,
    fine_tune,
    group_coherence,
    group_entropy,
    knn_classify,
    linear_probe,
    neighbour_agreement,
    nmi,
    purity,
    retrieval,
    target_ranks,
    uniformity,
)
from tests.learn.conftest import Golden
from tests.learn.test_groups import unit_rows


@pytest.mark.data
@pytest.mark.parametrize("chunk", [7, 512])
def test_the_neighbour_vote_is_the_authors(golden: Golden, chunk: int) -> None:
    train, labels, test = (golden(f"knn/{n}") for n in ("train", "train_labels", "test"))
    k, sigma = int(golden("knn/k")), float(golden("knn/sigma"))
    scores, predicted = knn_classify(train, labels, test, k, sigma, 5, chunk=chunk)
    torch.testing.assert_close(scores.float(), golden("knn/scores"), atol=1e-5, rtol=1e-5)
    assert torch.equal(predicted, golden("knn/pred"))


def test_the_vote_works_with_fewer_rows_than_neighbours_and_without_queries() -> None:
    train, labels = unit_rows(3, 4, 0), torch.tensor([0, 1, 1])
    assert knn_classify(train, labels, train, 200, 0.1, 2)[1].tolist() == [0, 1, 1]
    assert knn_classify(train, labels, train[:0], 200, 0.1, 2)[0].shape == (0, 2)


def test_the_vote_is_a_number_however_sharp() -> None:
    train, labels = torch.nn.functional.normalize(torch.ones(3, 4)), torch.tensor([0, 1, 1])
    scores, predicted = knn_classify(train, labels, train, 3, 0.005, 2)
    assert scores.isfinite().all()
    assert predicted.tolist() == [1, 1, 1]


def test_effective_rank_counts_the_directions_that_are_used() -> None:
    assert effective_rank(torch.eye(8)) == pytest.approx(8, rel=1e-5)
    assert effective_rank(torch.ones(20, 8)) == pytest.approx(1, abs=1e-3)
    assert effective_rank(torch.eye(8)[torch.arange(30) % 3]) == pytest.approx(3, rel=1e-5)
    assert effective_rank(torch.zeros(4, 8)) == 0


def test_feature_std_is_zero_when_collapsed_and_one_when_spread() -> None:
    assert feature_std(torch.ones(50, 16)) == pytest.approx(0, abs=1e-6)
    assert feature_std(unit_rows(5000, 64, 0)) == pytest.approx(1, abs=0.02)
    assert feature_std(7 * F.normalize(unit_rows(5000, 64, 0))) == pytest.approx(1, abs=0.02)


def labelled(n: int, classes: int, dim: int, seed: int, spread: float = 1.0) -> tuple[torch.Tensor, torch.Tensor]:
    """Unit rows scattered around a direction for each class."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(classes, (n,), generator=generator)
    centres = torch.randn(classes, dim, generator=torch.Generator().manual_seed(classes))
    return F.normalize(centres[labels] + spread * torch.randn(n, dim, generator=generator)), labels


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 60), st.integers(1, 6), st.integers(1, 5), st.integers(0, 9))
def test_nmi_and_purity_are_those_of_scikit_learn_and_of_a_loop(n: int, groups: int, labels: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    g, y = (torch.randint(k, (n,), generator=generator) for k in (groups, labels))
    assert nmi(g, y) == pytest.approx(normalized_mutual_info_score(y, g), abs=1e-9)
    right = sum(max(Counter(y[g == k].tolist()).values()) for k in set(g.tolist()))
    assert purity(g, y) == pytest.approx(right / n)


def test_the_linear_probe_agrees_with_scikit_learn_at_every_penalty() -> None:
    train, labels = labelled(400, 5, 16, 0, 1.6)
    test, truth = labelled(300, 5, 16, 1, 1.6)
    scaler = StandardScaler().fit(train.numpy())
    for penalty in (1e-1, 1e-3):
        model = LogisticRegression(C=1 / (penalty * len(train)), max_iter=2000)
        model.fit(scaler.transform(train.numpy()), labels.numpy())
        theirs = torch.from_numpy(model.predict(scaler.transform(test.numpy())))
        ours = linear_probe(train, labels, test, 5, penalties=(penalty,)).predicted_Q
        assert (ours == theirs).float().mean() > 0.99
    best = linear_probe(train, labels, test, 5)
    assert (best.predicted_Q == truth).float().mean() > 0.7
    assert torch.equal(best.predicted_Q, linear_probe(train, labels, test, 5).predicted_Q)


def test_the_penalty_is_chosen_by_the_rows_that_are_held_out() -> None:
    train, labels = labelled(60, 3, 40, 0, 3.0)
    held = torch.arange(60) % 2 == 0
    scaled = (train - train.mean(0)) / train.std(0, correction=0)
    right = []
    for penalty in PENALTIES:
        model = LogisticRegression(C=1 / (penalty * 30), max_iter=5000)
        model.fit(scaled[~held].numpy(), labels[~held].numpy())
        right.append((model.predict(scaled[held].numpy()) == labels[held].numpy()).sum())
    assert linear_probe(train, labels, train, 3, held).penalty == PENALTIES[right.index(max(right))]
    nobody = torch.zeros(60, dtype=torch.bool)
    assert linear_probe(train, labels, train, 3, nobody).penalty == PENALTIES[2]


def test_one_class_or_a_constant_feature_does_not_stop_the_linear_probe() -> None:
    rows = F.pad(unit_rows(12, 4, 0), (0, 1), value=3.0)
    assert linear_probe(rows, torch.zeros(12, dtype=torch.int64), rows, 1).predicted_Q.tolist() == [0] * 12


def test_retrieval_is_average_precision_and_recall_of_plain_loops() -> None:
    gallery, labels = labelled(80, 4, 8, 0)
    queries, asked = labelled(30, 5, 8, 1)  # label 4 is not in the gallery
    found = retrieval(gallery, labels, queries, asked, ks=(1, 3), chunk=7)
    precision, hits = [], {1: 0, 3: 0}
    for query, label in zip(queries, asked, strict=True):
        right = labels == label
        if right.any():
            similarity = gallery @ query
            precision.append(average_precision_score(right.numpy(), similarity.numpy()))
            for k in hits:
                hits[k] += bool(right[similarity.topk(k).indices].any())
    assert found.queries == len(precision) < 30
    assert found.mean_average_precision == pytest.approx(sum(precision) / len(precision), abs=1e-5)
    assert found.recall == pytest.approx({k: n / len(precision) for k, n in hits.items()})
    assert retrieval(gallery, labels, queries[:0], asked[:0]).queries == 0


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 20), st.integers(1, 20), st.integers(0, 9), st.booleans())
def test_a_target_ranks_behind_every_row_that_is_not_farther(n: int, q: int, seed: int, block: bool) -> None:
    generator = torch.Generator().manual_seed(seed)
    gallery, queries = unit_rows(n, 3, seed).round(decimals=1), unit_rows(q, 3, seed + 1).round(decimals=1)
    target = torch.randint(n, (q,), generator=generator)
    blocked = torch.rand(q, n, generator=generator) < 0.3 if block else None
    ranks = target_ranks(queries, gallery, target, blocked, chunk=6)
    similarity = queries @ gallery.T
    for i in range(q):
        ahead = [
            j
            for j in range(n)
            if j != target[i]
            and similarity[i, j] >= similarity[i, target[i]]
            and not (blocked is not None and blocked[i, j])
        ]
        assert (
            abs(int(ranks[i]) - 1 - len(ahead)) <= (similarity[i] - similarity[i, target[i]]).abs().lt(1e-6).sum() - 1
        )


def test_alignment_and_uniformity_are_those_of_plain_loops() -> None:
    a, b = unit_rows(9, 5, 0), unit_rows(9, 5, 1)
    assert alignment(a, b) == pytest.approx(sum(float((x - y).norm()) ** 2 for x, y in zip(a, b, strict=True)) / 9)
    pairs = [math.exp(-2 * float((x - y).norm()) ** 2) for i, x in enumerate(a) for j, y in enumerate(a) if i != j]
    assert uniformity(a, chunk=4) == pytest.approx(math.log(sum(pairs) / len(pairs)), abs=1e-5)
    assert uniformity(torch.ones(5, 4) / 2) == pytest.approx(0, abs=1e-6)


def test_coherence_is_one_for_points_nothing_for_chance_and_blind_to_single_rows() -> None:
    directions = unit_rows(6, 64, 0)
    numbers = torch.arange(120) % 6
    assert group_coherence(directions[numbers], numbers) == pytest.approx(1, abs=1e-5)
    assert group_coherence(unit_rows(2000, 8, 0), torch.arange(2000) % 7) == pytest.approx(0, abs=0.02)
    rows, labels = labelled(300, 4, 16, 0)
    within = group_coherence(rows, labels)
    assert 0.05 < within < 0.95
    lonely = torch.cat([rows, unit_rows(5, 16, 1)]), torch.cat([labels, torch.arange(10, 15)])
    assert group_coherence(*lonely) == pytest.approx(within, abs=1e-5)
    assert group_coherence(rows, torch.arange(300)) == 0


@settings(max_examples=30, deadline=None)
@given(st.lists(st.integers(1, 40), min_size=1, max_size=6), st.sampled_from([0.01, 0.1, 0.5, 1.0]))
def test_the_labels_that_are_shown_are_a_share_of_each_class_and_at_least_one(sizes: list[int], share: float) -> None:
    labels = torch.repeat_interleave(torch.arange(len(sizes)), torch.tensor(sizes)).flip(0)
    rows = choose_labelled(labels, share)
    assert torch.equal(rows, torch.unique(rows))
    assert torch.bincount(labels[rows]).tolist() == [max(1, round(share * n)) for n in sizes]


def test_fine_tuning_learns_from_a_few_labels_and_leaves_the_encoder_alone() -> None:
    torch.manual_seed(0)
    encoder = build_encoder(EncoderSettings(width=0.1, crop=16, feature_dim=8)).eval().requires_grad_(False)
    before = {name: tensor.clone() for name, tensor in encoder.state_dict().items()}
    labels = torch.arange(40) % 2
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 80, (40, 20, 20, 3), generator=generator, dtype=torch.uint8)
    pixels[labels == 1, :, :, 0] += 100  # class 1 is redder
    shown, shape = choose_labelled(labels, 0.1), torch.ones(40)
    models = [fine_tune(encoder, pixels[shown], shape[shown], labels[shown], 2, 16, steps=15) for _ in range(2)]
    logits = [model(central_view(pixels, shape, 16)) for model in models]
    assert (logits[0].argmax(1) == labels).float().mean() > 0.9
    assert torch.equal(*logits)
    assert all(torch.equal(before[name], tensor) for name, tensor in encoder.state_dict().items())


def test_agreement_is_one_for_the_same_space_turned_and_zero_for_unrelated_rows() -> None:
    torch.manual_seed(0)
    x_ND = torch.nn.functional.normalize(torch.randn(200, 16), dim=1)
    turn_DD = torch.linalg.qr(torch.randn(16, 16)).Q
    assert neighbour_agreement(x_ND, x_ND @ turn_DD, 10) > 0.999
    other_ND = torch.nn.functional.normalize(torch.randn(200, 24), dim=1)
    assert abs(neighbour_agreement(x_ND, other_ND, 10)) < 0.03
    with pytest.raises(ValueError, match="5 rows"):
        neighbour_agreement(x_ND[:5], other_ND[:5], 10)


def test_group_entropy_is_one_for_even_groups_and_falls_when_rows_meet() -> None:
    even_ND = torch.eye(8).repeat(4, 1)
    assert group_entropy(even_ND, 8) > 0.999
    assert group_entropy(torch.ones(32, 8) / 8**0.5, 8) == 0
    assert group_entropy(even_ND[:1], 8) == 1
