"""What one worker trains with, and where it begins: built from a configuration, set to a checkpoint. No Ray here."""

import io
import os
import sys
from contextlib import redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import nn

from blades_dist.arithmetic import set_precision
from blades_dist.bilevel.build import TaskWeights, build_weights
from blades_dist.config import PretrainConfig, TrainConfig
from blades_dist.data.order import Position, global_batches
from blades_dist.data.records import read_manifest
from blades_dist.distributed import World
from blades_dist.models.joint import build_joint_model, compile_towers
from blades_dist.tasks import TaskSet, task_set
from blades_dist.training import checkpoint, checkpoint_io
from blades_dist.training.checkpoint import Progress, Stateful
from blades_dist.training.determinism import keep_freed_memory, make_deterministic, threads
from blades_dist.training.device_part import Engine
from blades_dist.training.loggers import read_metrics
from blades_dist.training.progress import say
from blades_dist.training.step import BilevelStep
from blades_dist.training.torch_engine import PlainEngine


class TrainEngine(Engine, Stateful, Protocol):
    """An engine that steps and can be checkpointed."""


@dataclass
class Run:
    """Everything that one worker trains with."""

    config: PretrainConfig
    world: World
    device: torch.device
    manifest: str
    tasks: TaskSet
    engine: TrainEngine
    weights: TaskWeights
    step: BilevelStep
    total_steps: int
    writer: checkpoint_io.Writer

    @property
    def leads(self) -> bool:
        return self.world.rank == 0

    @property
    def folder(self) -> Path:
        return self.config.storage / self.config.name


def build(config: PretrainConfig, device: torch.device, workers_here: int) -> Run:
    """Everything at its start, for this rank of the present process group, one of ``workers_here`` on this host."""
    world = World.current()
    train = config.train
    cores = os.cpu_count() or 1
    torch.set_num_threads(threads(train, cores, workers_here))
    set_precision(train.precision)
    if train.deterministic:
        make_deterministic(device)
    elif device.type == "cuda":
        torch.backends.cudnn.benchmark = True  # shapes stay the same, so a search for the fastest is made once
    if device.type == "cpu":
        keep_freed_memory()
    tasks = task_set(flash=config.loss.flash)
    model = build_joint_model(config.model, tasks, train.seed, world).to(device).train()
    if train.precision == "bf16":
        model.autocast_dtype = torch.bfloat16
    if config.model.compile:
        compile_towers(model)
    engine = _engine(model, device, train, world)
    weights = build_weights(config.bilevel, tasks)
    keep_results = not config.model.activation_checkpointing
    step = BilevelStep(engine, tasks, weights, config.loss, config.bilevel, train, world, keep_results)
    manifest = read_manifest(config.data.shards)
    batches = global_batches(manifest, config.data.train_split, train.global_batch, train.epochs)
    total = batches // train.accumulate
    total = min(total, train.max_steps or total)
    folder = config.storage / config.name / checkpoint_io.FOLDER
    writer = checkpoint_io.Writer(folder, world, device, train.keep_checkpoints)
    return Run(config, world, device, manifest.digest(), tasks, engine, weights, step, total, writer)


def _engine(model: nn.Module, device: torch.device, train: TrainConfig, world: World) -> TrainEngine:
    """DeepSpeed, but for one GPU torch alone: with one rank there is nothing to shard, and graphs take no hooks."""
    if device.type == "cuda" and world.size == 1 and train.zero_stage == 0 and train.cuda_graphs != "off":
        return PlainEngine(model, train, world)
    engine: TrainEngine = _deepspeed(device)(model, train, world, train.global_batch // world.size)
    return engine


def _deepspeed(device: torch.device) -> Any:
    # DeepSpeed picks its accelerator, and says so, when it is imported: only here, and only once that is known.
    if device.type == "cpu":
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
    # Without nvcc it also prints a line for each operation that it cannot compile; none of them is used here. Nor is
    # its autotuner, which would load MLflow wherever that is installed: as long as all the rest of it takes.
    unused = "mlflow" not in sys.modules
    if unused:
        sys.modules["mlflow"] = None  # type: ignore[assignment]
    try:
        with redirect_stdout(io.StringIO()):
            from blades_dist.training.engine import DeepSpeedEngine
    finally:
        if unused:
            del sys.modules["mlflow"]
    return DeepSpeedEngine


def resume(run: Run) -> Progress:
    """The newest intact checkpoint of this run, else the one it is to start from, else the beginning."""
    path, start = _newest(run), run.config.start_from
    own = path is not None
    if path is None and start is not None:
        path = checkpoint_io.locate(start)
    if path is None:
        return Progress(0, Position(), Position())
    state, progress = checkpoint.restore(*checkpoint_io.read(path), run.engine, run.world)
    run.weights.load_state_dict(state)
    if run.leads:
        value = " ".join(f"{name} {weight:.4f}" for name, weight in run.weights.as_dict().items())
        how = "resumed" if own else f"started from {path}"
        logged = read_metrics(run.folder)
        if logged and logged[-1]["step"] > progress.step:
            say(f"{logged[-1]['step'] - progress.step} steps after the checkpoint are done again")
        say(f"{how} at step {progress.step}/{run.total_steps} with {run.world.size} workers, lambda {value}")
    return progress


def _newest(run: Run) -> Path | None:
    """Rank 0 looks and verifies; the others are told."""
    step = -1
    if run.leads:
        found = checkpoint_io.newest(run.writer.folder, say)
        step = checkpoint_io.step_of(found) if found else -1
    step = int(run.world.sum(torch.tensor([step if run.leads else 0], device=run.device)))
    return checkpoint_io.path_of(run.writer.folder, step) if step >= 0 else None
