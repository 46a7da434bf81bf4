"""The record of which photographs a run saw: put together over ranks and starts."""

import json
from pathlib import Path

import pytest

from blades_dist.distributed import World
from blades_dist.training.sample import FOLDER, SampleLog, sequence


def write(run: Path, rank: int, size: int, steps: range, mark: str = "") -> None:
    with SampleLog(run, World(size, rank), on=True) as log:
        for step in steps:
            log.write(step, [[f"{mark}{step}-{rank}"]], [f"v{step}-{rank}"] if step % 2 else None)


def test_ranks_are_joined_in_order_and_the_last_start_counts(tmp_path: Path) -> None:
    for rank in (1, 0):
        write(tmp_path, rank, 2, range(3), mark="old ")
    for rank in (0, 1):
        write(tmp_path, rank, 2, range(1, 4))
    found = sequence(tmp_path)
    assert [step["train"] for step in found] == [[["old 0-0", "old 0-1"]], *([[f"{i}-0", f"{i}-1"]] for i in (1, 2, 3))]
    assert [step["val"] for step in found] == [None, ["v1-0", "v1-1"], None, ["v3-0", "v3-1"]]


def test_a_smaller_group_later_and_torn_lines_are_understood(tmp_path: Path) -> None:
    for rank in (0, 1):
        write(tmp_path, rank, 2, range(4))
    write(tmp_path, 0, 1, range(2, 5))
    with (tmp_path / FOLDER / "rank-00000.jsonl").open("a") as file:
        file.write('{"step": 5, "rank": 0, "wor')
    assert [len(step["train"][0]) for step in sequence(tmp_path)] == [2, 2, 1, 1, 1]


def test_a_missing_rank_is_told(tmp_path: Path) -> None:
    write(tmp_path, 0, 2, range(2))
    write(tmp_path, 1, 2, range(1))
    with pytest.raises(ValueError, match="step 1 has not one line of each rank"):
        sequence(tmp_path)


def test_off_writes_nothing(tmp_path: Path) -> None:
    with SampleLog(tmp_path, World(), on=False) as log:
        log.write(0, [["a"]], None)
    assert not (tmp_path / FOLDER).exists()
    assert json.dumps(sequence(tmp_path)) == "[]"
