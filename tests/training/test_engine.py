"""DeepSpeed: checkpoints that resume bitwise at ZeRO 0, 1 and 2, and what is refused."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pydantic import ValidationError

from blades_dist.config import TrainConfig
from blades_dist.data.order import Position
from blades_dist.distributed import World
from blades_dist.testing.gloo import GlooPool
from blades_dist.training import checkpoint, checkpoint_io
from blades_dist.training.checkpoint import Progress, Skipped
from tests.problems import LR, build_step, small_model, take_steps

ROWS = 8


def deepspeed_steps(stage: int, first: int, last: int, source: Path | None, target: Path | None) -> dict[str, Any]:
    from blades_dist.training.engine import DeepSpeedEngine

    world = World.current()
    config = TrainConfig(lr=LR, zero_stage=stage)
    engine = DeepSpeedEngine(small_model(world).train(), config, world, ROWS // world.size)
    step = build_step(engine, world)
    if source is not None:
        found = checkpoint_io.newest(source, print)
        assert found is not None
        state, progress = checkpoint.restore(*checkpoint_io.read(found), engine, world)
        step.weights.load_state_dict(state)
        assert progress == Progress(first, Position(1, 2), Position(3, 4), (Skipped(1, "a reason"),))
    found = take_steps(step, world, first, last, ROWS, torch.float32)
    if target is not None:
        progress = Progress(last, Position(1, 2), Position(3, 4), (Skipped(1, "a reason"),))
        writer = checkpoint_io.Writer(target, world, torch.device("cpu"), keep=2)
        writer.begin(checkpoint.snapshot(engine, step.weights.state_dict(), progress, world))
        writer.flush()
        writer.close()
    return found


@pytest.mark.parametrize("stage", [0, 1, 2])
def test_resumes_bitwise(two_ranks: GlooPool, tmp_path: Path, stage: int) -> None:
    whole = two_ranks.run(deepspeed_steps, stage, 0, 4, None, None)[0]
    two_ranks.run(deepspeed_steps, stage, 0, 2, None, tmp_path)
    (saved,) = checkpoint_io.saved(tmp_path)
    assert sorted(file.suffix for file in saved.iterdir()) == [".json", ".safetensors", ".safetensors"]
    resumed = two_ranks.run(deepspeed_steps, stage, 2, 4, tmp_path, None)[0]
    for key in ("losses", "lambda", "parameters", "buffers"):
        assert np.array_equal(resumed[key], whole[key]), key


def test_a_checkpoint_of_another_model_is_refused(two_ranks: GlooPool, tmp_path: Path) -> None:
    two_ranks.run(deepspeed_steps, 0, 0, 1, None, tmp_path)
    from blades_dist.training.torch_engine import PlainEngine

    engine = PlainEngine(small_model(highpass=4.0), TrainConfig(lr=LR), World())
    with pytest.raises(ValueError, match="of another model"):
        checkpoint.restore(*checkpoint_io.read(checkpoint_io.saved(tmp_path)[0]), engine, World())


def test_stage_three_is_refused_with_the_reason() -> None:
    with pytest.raises(ValidationError, match="needs them whole"):
        TrainConfig(zero_stage=3)
