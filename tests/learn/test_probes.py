import pytest
import torch
import torch.nn.functional as F

from cld_stream.learn.probes import effective_rank, feature_std, knn_classify
from tests.learn.conftest import Golden
from tests.learn.test_groups import unit_rows


@pytest.mark.data
@pytest.mark.parametrize("chunk", [7, 512])
def test_the_neighbour_vote_is_the_authors(golden: Golden, chunk: int) -> None:
    train, labels, test = (golden(f"knn/{n}") for n in ("train", "train_labels", "test"))
    k, sigma = int(golden("knn/k")), float(golden("knn/sigma"))
    scores, predicted = knn_classify(train, labels, test, k, sigma, 5, chunk=chunk)
    torch.testing.assert_close(scores, golden("knn/scores"), atol=1e-5, rtol=1e-5)
    assert torch.equal(predicted, golden("knn/pred"))


def test_the_vote_works_with_fewer_rows_than_neighbours_and_without_queries() -> None:
    train, labels = unit_rows(3, 4, 0), torch.tensor([0, 1, 1])
    assert knn_classify(train, labels, train, 200, 0.1, 2)[1].tolist() == [0, 1, 1]
    assert knn_classify(train, labels, train[:0], 200, 0.1, 2)[0].shape == (0, 2)


def test_effective_rank_counts_the_directions_that_are_used() -> None:
    assert effective_rank(torch.eye(8)) == pytest.approx(8, rel=1e-5)
    assert effective_rank(torch.ones(20, 8)) == pytest.approx(1, abs=1e-3)
    assert effective_rank(torch.eye(8)[torch.arange(30) % 3]) == pytest.approx(3, rel=1e-5)
    assert effective_rank(torch.zeros(4, 8)) == 0


def test_feature_std_is_zero_when_collapsed_and_one_when_spread() -> None:
    assert feature_std(torch.ones(50, 16)) == pytest.approx(0, abs=1e-6)
    assert feature_std(unit_rows(5000, 64, 0)) == pytest.approx(1, abs=0.02)
    assert feature_std(7 * F.normalize(unit_rows(5000, 64, 0))) == pytest.approx(1, abs=0.02)
