"""What a checkpoint costs a step: copied in the step, written beside it, against written in the step.

The paper's model (ResNet-50 and the GPT-2 tower) with AdamW's moments, one worker, a disk. ``--write`` for the table.
"""

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
from device import cpu_name

from blades_dist.config import ModelConfig, TrainConfig
from blades_dist.data.order import Position
from blades_dist.distributed import World
from blades_dist.models.joint import build_joint_model
from blades_dist.tasks import task_set
from blades_dist.training import checkpoint_io
from blades_dist.training.checkpoint import Progress, restore, snapshot, trainable
from blades_dist.training.torch_engine import PlainEngine

RESULT = Path(__file__).parent / "results" / "checkpoint.md"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", action="store_true", help=f"write {RESULT.name}")
    parser.add_argument("--repeat", type=int, default=5)
    options = parser.parse_args()
    text = _measure(options.repeat)
    print(text)
    if options.write:
        RESULT.write_text(text)


def _measure(repeat: int) -> str:
    world, config = World(), TrainConfig()
    engine = PlainEngine(build_joint_model(ModelConfig(), task_set(), 0, world), config, world)
    for value in trainable(engine.module).values():
        value.grad = torch.ones_like(value)
    engine.optimizer.step()  # moments exist from now on
    rows: dict[str, list[float]] = {"in the step": [], "beside it": [], "verify": [], "load": []}
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        writer = checkpoint_io.Writer(folder, world, torch.device("cpu"), keep=2)
        for step in range(1, repeat + 1):
            progress = Progress(step, Position(), Position())
            begin = time.monotonic()
            copied = snapshot(engine, {}, progress, world)
            taken = time.monotonic()
            writer.begin(copied)
            writer.flush()
            rows["in the step"].append(taken - begin)
            rows["beside it"].append(time.monotonic() - taken)
        writer.close()
        path = checkpoint_io.saved(folder)[0]
        size = sum(file.stat().st_size for file in path.iterdir())
        for _ in range(repeat):
            rows["verify"].append(_seconds(lambda: checkpoint_io.verify(path)))
            rows["load"].append(_seconds(lambda: restore(*checkpoint_io.read(path), engine, world)))
    median = {name: statistics.median(values) for name, values in rows.items()}
    blocked, whole = median["in the step"], median["in the step"] + median["beside it"]
    lines = [
        "# What a checkpoint costs a step",
        "",
        f"- device: {cpu_name()}; torch {torch.__version__}; the disk of the system's temporary folder",
        f"- {size / 2**20:.0f} MiB: parameters, buffers and both moments of the paper's model; medians of {repeat}",
        "",
        "| part | seconds | while it runs |",
        "|---|---|---|",
        f"| copy to memory | {blocked:.2f} | the step waits |",
        f"| write, digest, sync to the disk, rename | {median['beside it']:.2f} | training goes on |",
        f"| verify before a resumption | {median['verify']:.2f} | rank 0, the others wait |",
        f"| read and set | {median['load']:.2f} | every rank |",
        "",
        f"A step waits {blocked / whole:.0%} of what it would if everything were written in it.",
        "",
    ]
    return "\n".join(lines)


def _seconds(work: Callable[[], object]) -> float:
    begin = time.monotonic()
    work()
    return time.monotonic() - begin


if __name__ == "__main__":
    main()
