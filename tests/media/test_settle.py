"""When a file counts as still, and when a growing one is worth a look."""

from hypothesis import given
from hypothesis import strategies as st

from cld_stream.media.settle import Settling


@given(st.lists(st.tuples(st.sampled_from("abc"), st.integers(0, 3), st.floats(0.1, 3.0)), max_size=60))
def test_a_file_is_still_exactly_when_it_has_not_changed_for_as_long_as_asked(
    steps: list[tuple[str, int, float]],
) -> None:
    settling, now = Settling(2.0, 5.0), 0.0
    sign, since = dict[str, int](), dict[str, float]()
    for name, new, pause in steps:
        settling.see(f"/f/{name}", new, now)
        if sign.get(name) != new:
            sign[name], since[name] = new, now
        now += pause
        still = {path[-1]: s for path, s in settling.still(now, 100)}
        assert still == {n: s for n, s in sign.items() if now - since[n] >= 2.0}
        assert len(settling.still(now, 1)) == min(1, len(still))
        assert settling.count("/f") == len(settling) == len(sign)
        for path in still:
            settling.drop(f"/f/{path}")
            del sign[path], since[path]


def test_a_growing_file_is_looked_at_now_and_then_and_less_often_the_longer_that_takes() -> None:
    settling = Settling(2.0, 5.0)
    taken = []
    for tenth in range(1000):
        now = tenth / 10
        settling.see("/f/rec", tenth // 5, now)
        settling.see("/f/still", 0, now)
        if settling.growing(now):
            taken.append(now)
            settling.took("/f/rec", now, spent_s=2.0, useful=True)
    assert taken == [5.0, 25.0, 45.0, 65.0, 85.0]
    assert [path for path, _ in settling.still(103.0, 9)] == ["/f/still"]  # recorders pause
    assert [path for path, _ in settling.still(105.0, 9)] == ["/f/still", "/f/rec"]


def test_folders_can_be_held_back() -> None:
    settling = Settling(1.0, 5.0)
    settling.see("/f/a", 1, 0.0)
    settling.see("/g/b", 2, 0.0)
    assert settling.still(1.0, 9, held={"/f"}) == [("/g/b", 2)]
    settling.drop("/g/b")
    settling.drop("/g/b")
    assert (settling.count("/g"), len(settling), "/f/a" in settling) == (0, 1, True)
