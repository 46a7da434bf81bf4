"""Checkpoints on disk: whole or not at all, verified, world-size-free, written while training goes on."""

import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from blades_dist.distributed import World
from blades_dist.testing.gloo import GlooPool
from blades_dist.training import checkpoint_io
from blades_dist.training.checkpoint import shares
from blades_dist.training.checkpoint_io import Snapshot

CPU = torch.device("cpu")


def snapshot(step: int, values: int = 1000) -> Snapshot:
    return Snapshot(step, {"model.w": torch.full((values,), float(step))}, {"progress": {"step": step}})


def write(folder: Path, *steps: int, keep: int = 9) -> None:
    writer = checkpoint_io.Writer(folder, World(), CPU, keep)
    for step in steps:
        writer.begin(snapshot(step))
    writer.flush()
    writer.close()


def test_what_was_written_is_read_and_the_oldest_go(tmp_path: Path) -> None:
    write(tmp_path, 2, 4, 6, keep=2)
    assert [checkpoint_io.step_of(path) for path in checkpoint_io.saved(tmp_path)] == [6, 4]
    found = checkpoint_io.newest(tmp_path, pytest.fail)
    assert found == checkpoint_io.path_of(tmp_path, 6)
    tensors, state = checkpoint_io.read(found)
    assert tensors["model.w"].tolist() == [6.0] * 1000 and state == {"progress": {"step": 6}}
    assert {path.name for path in tmp_path.iterdir()} == {"step-00000006", "step-00000004"}


def flip(file: Path, at: int) -> None:
    data = bytearray(file.read_bytes())
    data[at % len(data)] ^= 1 << (at % 8)
    file.write_bytes(data)


@pytest.mark.parametrize("seed", range(20))
def test_any_damage_is_seen_and_the_one_before_is_used(tmp_path: Path, seed: int) -> None:
    write(tmp_path, 1, 2)
    dice, said = random.Random(seed), list[str]()
    file = dice.choice(sorted(checkpoint_io.path_of(tmp_path, 2).iterdir()))
    kind = dice.choice(["flip", "cut", "grow", "delete"])
    if kind == "flip":
        flip(file, dice.randrange(file.stat().st_size))
    elif kind == "cut":
        file.write_bytes(file.read_bytes()[: dice.randrange(file.stat().st_size)])
    elif kind == "grow":
        file.write_bytes(file.read_bytes() + b"\0")
    else:
        file.unlink()
    found = checkpoint_io.newest(tmp_path, said.append)
    assert found == checkpoint_io.path_of(tmp_path, 1), kind
    (line,) = said
    assert "step 2 is damaged" in line and file.name in line and "damaged-step-00000002" in line
    write(tmp_path, 2)  # its name is free again
    assert checkpoint_io.newest(tmp_path, pytest.fail) == checkpoint_io.path_of(tmp_path, 2)


def test_with_none_intact_nothing_is_trained_anew_silently(tmp_path: Path) -> None:
    assert checkpoint_io.newest(tmp_path, pytest.fail) is None
    write(tmp_path / "run" / checkpoint_io.FOLDER, 3)
    assert checkpoint_io.locate(tmp_path / "run") == checkpoint_io.locate(
        checkpoint_io.path_of(tmp_path / "run" / checkpoint_io.FOLDER, 3)
    )
    flip(next(checkpoint_io.path_of(tmp_path / "run" / checkpoint_io.FOLDER, 3).glob("part-*")), 77)
    with pytest.raises(checkpoint_io.DamagedError, match=r"no checkpoint in .* is intact"):
        checkpoint_io.locate(tmp_path / "run")
    with pytest.raises(checkpoint_io.DamagedError, match="delete the run's folder to start anew"):
        checkpoint_io.newest(tmp_path / "run" / checkpoint_io.FOLDER, lambda line: None)
    with pytest.raises(FileNotFoundError, match="neither a checkpoint nor the folder of a run"):
        checkpoint_io.locate(tmp_path / "elsewhere")


KILLED = """
import sys, torch
from pathlib import Path
from blades_dist.distributed import World
from blades_dist.training import checkpoint_io
from blades_dist.training.checkpoint_io import Snapshot
folder, first = Path(sys.argv[1]), int(sys.argv[2])
writer = checkpoint_io.Writer(folder, World(), torch.device("cpu"), keep=2)
for step in range(first, 10**6):
    tensors = {"model.w": torch.full((100_000,), float(step))}
    writer.begin(Snapshot(step, tensors, {"progress": {"step": step}}))
    writer.flush()
    print(step, flush=True)
"""


def test_a_kill_at_any_moment_leaves_what_was_complete(tmp_path: Path) -> None:
    """The process says which steps are complete; killed at random moments it never has less, nor anything broken."""
    dice, first = random.Random(1), 1
    for _ in range(3):
        command = [sys.executable, "-c", KILLED, str(tmp_path), str(first)]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=Path(__file__).parents[2]) as process:
            assert process.stdout is not None
            told = int(process.stdout.readline())
            time.sleep(dice.random() / 10)
            os.kill(process.pid, signal.SIGKILL)
            told = max([told, *(int(line) for line in process.stdout.read().split())])
        found = checkpoint_io.newest(tmp_path, pytest.fail)
        assert found is not None and checkpoint_io.step_of(found) in (told, told + 1)
        tensors, state = checkpoint_io.read(found)
        assert state["progress"]["step"] == checkpoint_io.step_of(found) == int(tensors["model.w"][0])
        first = checkpoint_io.step_of(found) + 1
    write(tmp_path, 10**6)
    assert not list(tmp_path.glob(".writing-*")), "what was cut off is cleared away"


def test_training_goes_on_while_a_slow_disk_writes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    gate, real = threading.Event(), checkpoint_io.save_file

    def slow(tensors: dict[str, Tensor], file: Path) -> None:
        assert gate.wait(60)
        real(tensors, file)

    monkeypatch.setattr(checkpoint_io, "save_file", slow)
    writer = checkpoint_io.Writer(tmp_path, World(), CPU, 2)
    writer.begin(snapshot(5))
    for _ in range(3):  # steps of the run: none waits
        writer.agreed(*writer.outlook)
    assert checkpoint_io.saved(tmp_path) == []
    gate.set()
    writer.flush()
    assert checkpoint_io.newest(tmp_path, pytest.fail) == checkpoint_io.path_of(tmp_path, 5)
    writer.close()


def test_a_disk_that_fails_ends_the_run_with_the_reason(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(checkpoint_io, "save_file", full)
    writer = checkpoint_io.Writer(tmp_path, World(), CPU, 2)
    writer.begin(snapshot(5))
    with pytest.raises(OSError, match="No space left"):
        writer.flush()
    assert checkpoint_io.saved(tmp_path) == []


def write_ranks(folder: Path, breaks: bool) -> str:
    world = World.current()
    writer = checkpoint_io.Writer(folder, world, CPU, keep=2)
    tensors = {f"model.{world.rank}": torch.arange(4) + world.rank}
    if breaks and world.rank == 1:
        tensors = {"model.1": torch.ones(2, dtype=torch.complex128).conj()}  # safetensors refuses it
    writer.begin(Snapshot(7, tensors, {"progress": {"step": 7}}))
    try:
        writer.flush()
    except Exception as error:
        return type(error).__name__ + str(error)
    finally:
        writer.close()
    assert checkpoint_io.path_of(folder, 7).is_dir(), "complete on every rank once flush returns"
    return ""


def test_every_ranks_part_is_there_or_there_is_no_checkpoint(two_ranks: GlooPool, tmp_path: Path) -> None:
    assert two_ranks.run(write_ranks, tmp_path / "good", False) == ["", ""]
    found = checkpoint_io.path_of(tmp_path / "good", 7)
    assert set(checkpoint_io.read(found)[0]) == {"model.0", "model.1"}
    index = json.loads((found / checkpoint_io.INDEX).read_text())["content"]
    assert [part["file"] for part in index["parts"]] == [f"part-0000{r}-of-00002.safetensors" for r in (0, 1)]
    first, second = two_ranks.run(write_ranks, tmp_path / "bad", True)
    assert "another worker could not write" in first and second and "another worker" not in second
    assert checkpoint_io.saved(tmp_path / "bad") == []


def test_shares_cover_every_tensor_once_and_evenly() -> None:
    generator = torch.Generator().manual_seed(0)
    tensors = {f"t{i}": torch.empty(int(torch.randint(1, 1000, (1,), generator=generator))) for i in range(50)}
    for ranks in (1, 2, 3, 7, 64):
        parts = shares(tensors, ranks)
        assert sorted(name for part in parts for name in part) == sorted(tensors)
        loads = [sum(tensors[name].numel() for name in part) for part in parts]
        assert max(loads) - min(loads) <= 1000
