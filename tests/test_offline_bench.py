"""Sets of the offline protocol."""

import pytest

from benchmarks.offline.data import class_sizes


@pytest.mark.parametrize(("imbalance", "published"), [(10, 20_431), (100, 12_406)])
def test_a_long_tail_of_all_of_cifar_10_is_the_published_one(imbalance: int, published: int) -> None:
    sizes = class_sizes(50_000, imbalance, most=5_000)
    assert sum(sizes) == pytest.approx(published, abs=10)
    assert sizes[0] == pytest.approx(5_000, abs=2)
    assert max(sizes) <= 5_000
    assert sizes[-1] == pytest.approx(5_000 / imbalance, abs=2)


def test_a_set_that_there_are_images_for_has_as_many_as_asked() -> None:
    assert class_sizes(10_000, 1, most=5_000) == [1_000] * 10
    assert sum(class_sizes(10_000, 100, most=5_000)) == 10_000
