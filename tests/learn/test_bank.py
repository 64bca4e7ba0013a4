import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from cld_stream.learn.bank import MemoryBank
from tests.learn.conftest import Golden
from tests.learn.test_groups import unit_rows


@pytest.mark.data
def test_an_update_with_one_view_is_the_authors(golden: Golden) -> None:
    before, x = golden("npid/bank_before"), golden("npid/x")
    bank = MemoryBank(len(before), before.shape[1], momentum=0.5)
    bank.fill(torch.arange(len(before)), before)
    bank.update(golden("npid/index"), x, x)
    torch.testing.assert_close(bank.rows_MD, golden("npid/bank_after"), atol=1e-6, rtol=0)


@settings(max_examples=40, deadline=None)
@given(st.data(), st.integers(1, 8), st.sampled_from([0.0, 0.5, 0.9, 1.0]))
def test_the_bank_is_a_table_of_prototypes_by_slot(data: st.DataObject, capacity: int, momentum: float) -> None:
    bank = MemoryBank(capacity, 4, momentum)
    model: dict[int, tuple[torch.Tensor, int]] = {}
    for step in range(data.draw(st.integers(1, 6))):
        slots = data.draw(st.lists(st.integers(0, capacity - 1), unique=True, min_size=1))
        f1, f2 = unit_rows(len(slots), 4, 2 * step), unit_rows(len(slots), 4, 2 * step + 1)
        act = data.draw(st.sampled_from(["fill", "update", "kill"]))
        if act == "fill":
            bank.fill(torch.tensor(slots), 3 * f1, step)
            model |= {s: (f1[i], step) for i, s in enumerate(slots)}
        elif act == "kill":
            bank.kill(torch.tensor(slots))
            model = {s: row for s, row in model.items() if s not in slots}
        else:
            rows = [i for i, s in enumerate(slots) if s in model]
            bank.update(torch.tensor(slots, dtype=torch.int64)[rows], f1[rows], f2[rows], step)
            for i in rows:
                mean = f1[i] + f2[i]
                v = momentum * model[slots[i]][0] + (1 - momentum) * mean / mean.norm()
                model[slots[i]] = (v / v.norm(), step)
    assert bank.live_M.tolist() == [s in model for s in range(capacity)]
    for s in range(capacity):
        torch.testing.assert_close(bank.rows_MD[s], model[s][0] if s in model else torch.zeros(4))
    assert bank.age(10).tolist() == [10 - model[s][1] for s in sorted(model)]


def test_a_saved_bank_goes_on_as_it_was_and_fits_its_own_shape_only() -> None:
    bank, twin = MemoryBank(5, 4, 0.5), MemoryBank(5, 4, 0.5)
    bank.fill(torch.tensor([1, 3]), unit_rows(2, 4, 0), step=7)
    twin.load_state_dict(bank.state_dict())
    for name, tensor in twin.state_dict().items():
        assert torch.equal(tensor, bank.state_dict()[name])
    with pytest.raises(ValueError, match="saved bank is"):
        MemoryBank(6, 4, 0.5).load_state_dict(bank.state_dict())
