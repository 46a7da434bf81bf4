"""Deterministic training: the same bits in another process."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from blades_dist.config import TrainConfig
from blades_dist.training.determinism import CUBLAS, make_deterministic, threads

ROOT = Path(__file__).parents[2]
STEPS = """
import hashlib, torch
from blades_dist.training.determinism import make_deterministic, prepare_environment
from tests.problems import plain_steps
prepare_environment()
make_deterministic(torch.device("cpu"))
torch.set_num_threads(2)
assert torch.are_deterministic_algorithms_enabled()
found = plain_steps(8, 3, False, lookahead="adamw")
print(hashlib.sha256(b"".join(found[name].tobytes() for name in sorted(found) if name != "norm")).hexdigest())
print(found["norm"].hex())
"""


def test_steps_in_two_processes_are_bitwise_equal() -> None:
    # Another order of everything hashed: what depends on that is not deterministic.
    jobs = [
        subprocess.Popen(
            [sys.executable, "-c", STEPS],
            env=os.environ | {"PYTHONHASHSEED": seed},
            cwd=ROOT,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for seed in ("1", "2")
    ]
    outputs = [job.communicate(timeout=300) for job in jobs]
    assert [job.returncode for job in jobs] == [0, 0], outputs
    assert outputs[0][0] == outputs[1][0] and len(outputs[0][0].split()) == 2


def test_a_gpu_without_the_workspace_setting_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    for value in (None, ":1:1"):
        monkeypatch.delenv(CUBLAS, raising=False)
        if value:
            monkeypatch.setenv(CUBLAS, value)
        with pytest.raises(RuntimeError, match=f"needs {CUBLAS}=:4096:8 .* before CUDA starts"):
            make_deterministic(torch.device("cuda"))
    assert not torch.are_deterministic_algorithms_enabled()


def test_threads_are_pinned_where_bits_count() -> None:
    assert threads(TrainConfig(), 16, 4) == 4 and threads(TrainConfig(), 2, 4) == 1
    assert threads(TrainConfig(deterministic=True), 16, 4) == 1
    assert threads(TrainConfig(deterministic=True, threads_per_worker=3), 16, 4) == 3
