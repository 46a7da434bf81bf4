"""``bilevel.val_batch``: how many validation photographs an outer step takes, over all workers."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from pydantic import ValidationError

from blades_dist.config import PretrainConfig
from blades_dist.data.order import Position
from blades_dist.distributed import World
from blades_dist.training import worker


def config(train: dict[str, Any], val_batch: int | None = None) -> PretrainConfig:
    values = {"data": {"shards": "somewhere"}, "train": train, "bilevel": {"val_batch": val_batch}}
    return PretrainConfig.model_validate(values)


@pytest.mark.parametrize(
    ("train", "val_batch", "rows"),
    [
        ({"batch_size": 48}, None, 48),
        ({"batch_size": 48, "workers": 4}, None, 192),
        ({"batch_size": 48, "workers": 4}, 48, 48),
        ({"batch_size": 48, "workers": [2, 4]}, 12, 12),
    ],
)
def test_it_counts_all_workers_rows(train: dict[str, Any], val_batch: int | None, rows: int) -> None:
    assert config(train, val_batch).val_batch == rows


@pytest.mark.parametrize(
    ("workers", "val_batch", "message"),
    [
        (4, 10, r"bilevel\.val_batch: 10 photographs cannot be shared evenly by 4 workers .* multiple of 4"),
        ([2, 4], 8, r"bilevel\.val_batch: 8 .* by 3 workers .* multiple of 12"),
        (1, 1, "greater than or equal to 2"),
    ],
)
def test_what_workers_cannot_share_is_refused(workers: Any, val_batch: int, message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        config({"batch_size": 12, "workers": workers}, val_batch)


@pytest.mark.parametrize("size", [2, 4])
def test_each_stream_has_its_own_batch(size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Positions count rows of all workers, so a stream goes on from one whatever its batch is."""
    asked: list[dict[str, Any]] = []

    def stream(*_: Any, **options: Any) -> Any:
        asked.append(options)
        return iter(())

    monkeypatch.setattr(worker, "stream", stream)
    run: Any = SimpleNamespace(
        config=config({"batch_size": 12, "workers": [2, 4]}, 24), world=World(size, 1), device=torch.device("cpu")
    )
    for which in (worker.TRAIN, worker.VAL):
        worker._feed(run, "split", which, Position(1, 36))
    assert [each["batch_size"] * size for each in asked] == [48, 24]
    assert all(each["start"] == Position(1, 36) and each["world_size"] == size for each in asked)
