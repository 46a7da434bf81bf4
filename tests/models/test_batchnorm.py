"""BatchNorm's modes."""

import torch
from torch import nn

from blades_dist.distributed import World
from blades_dist.models.batchnorm import BatchNorm2d, replace_batchnorm, still_statistics


def test_batchnorm_equals_torchs_and_can_stand_still() -> None:
    torch.manual_seed(0)
    theirs = nn.Sequential(nn.BatchNorm2d(3))
    ours = nn.Sequential(nn.BatchNorm2d(3))
    replace_batchnorm(ours, "sync", World())
    assert isinstance(ours[0], BatchNorm2d)
    x = torch.randn(4, 3, 5, 5)
    torch.testing.assert_close(ours(x), theirs(x))
    torch.testing.assert_close(ours[0].running_var, theirs[0].running_var)
    before = {name: value.clone() for name, value in ours.state_dict().items()}
    with still_statistics(ours):
        ours(torch.randn(4, 3, 5, 5))
    assert all(torch.equal(value, before[name]) for name, value in ours.state_dict().items())
    frozen = nn.Sequential(nn.BatchNorm2d(3))
    replace_batchnorm(frozen, "frozen", World())
    assert torch.equal(frozen(x), frozen.eval()(x))
