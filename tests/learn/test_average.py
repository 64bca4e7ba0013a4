import torch
from torch import nn

from cld_stream.learn.average import WeightAverage, estimate_batch_norm


def test_the_average_follows_the_formula_with_its_warm_up() -> None:
    module = nn.Linear(2, 1, bias=False)
    average = WeightAverage(module, decay=0.5)
    expected = module.weight.detach().clone()
    for t in range(30):
        with torch.no_grad():
            module.weight.copy_(torch.tensor([[float(t), -float(t)]]))
        average.follow(module)
        d = min(0.5, (1 + t) / (10 + t))
        expected = d * expected + (1 - d) * module.weight.detach()
    torch.testing.assert_close(average.module(module).weight.detach(), expected)


def test_averaging_leaves_the_trained_module_alone() -> None:
    module = nn.Sequential(nn.Conv2d(1, 2, 1), nn.BatchNorm2d(2))
    before = {name: t.clone() for name, t in module.state_dict().items()}
    average = WeightAverage(module, decay=0.9)
    average.follow(module)
    estimate_batch_norm(average.module(module), [torch.randn(4, 1, 2, 2)])
    assert all(torch.equal(before[name], t) for name, t in module.state_dict().items())


def test_batch_norm_statistics_are_the_mean_over_the_batches() -> None:
    module = nn.Sequential(nn.BatchNorm1d(3)).eval()
    norm = module[0]
    assert isinstance(norm, nn.BatchNorm1d)
    batches = [torch.randn(8, 3, generator=torch.Generator().manual_seed(i)) * (i + 1) + i for i in range(4)]
    estimate_batch_norm(module, batches)
    assert norm.running_mean is not None
    assert norm.running_var is not None
    torch.testing.assert_close(norm.running_mean, torch.stack([b.mean(0) for b in batches]).mean(0))
    torch.testing.assert_close(norm.running_var, torch.stack([b.var(0) for b in batches]).mean(0))
    assert not module.training
    assert norm.momentum == 0.1


def test_batch_norm_statistics_are_of_what_eval_mode_gives() -> None:
    module, batch = nn.Sequential(nn.Dropout(0.5), nn.BatchNorm1d(3)), torch.rand(8, 3)
    estimate_batch_norm(module, [batch])
    torch.testing.assert_close(module.state_dict()["1.running_mean"], batch.mean(0))
    assert all(layer.training for layer in module.modules())


def test_without_batches_or_batch_norm_nothing_changes() -> None:
    module = nn.Sequential(nn.BatchNorm1d(3))
    before = {name: t.clone() for name, t in module.state_dict().items()}
    estimate_batch_norm(module, [])
    assert all(torch.equal(before[name], t) for name, t in module.state_dict().items())
    estimate_batch_norm(nn.Linear(2, 2), [torch.randn(4, 2)])
