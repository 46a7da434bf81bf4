"""Numbers of workers: which are possible, and what is the same run."""

import pytest
from pydantic import ValidationError

from blades_dist.config import TrainConfig
from blades_dist.training.provenance import is_free


def test_the_global_batch_belongs_to_the_largest_group() -> None:
    assert TrainConfig(workers=4, batch_size=6).global_batch == 24
    elastic = TrainConfig.model_validate({"workers": [2, 4], "batch_size": 6})
    assert elastic.worker_range == (2, 4) and elastic.global_batch == 24


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"workers": [1, 3], "batch_size": 5}, "cannot be shared evenly by 2 workers; take .* a multiple of 6"),
        ({"workers": [0, 2]}, "at least 1, or .least, most."),
        ({"workers": [3, 2]}, "in this order"),
        ({"workers": 2, "gpu": True, "gpu_per_worker": 0.5}, "NCCL takes one worker a GPU"),
    ],
)
def test_what_cannot_be_is_refused_with_what_would_do(values: dict[str, object], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        TrainConfig.model_validate(values)


def test_free_keys_are_whole_names() -> None:
    assert is_free("train.guard.max_skips") and is_free("ray.num_cpus") and is_free("train.workers")
    assert not is_free("train.guards") and not is_free("train.lr") and not is_free("data.shards")
