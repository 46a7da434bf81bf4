"""Ray Train's function: what one worker does from the first step, or the last checkpoint, to the exported encoder."""

import json
import os
import tempfile
from contextlib import ExitStack, closing
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

import ray.train
import ray.train.torch
import torch

from blades_dist import __version__
from blades_dist.bilevel.reduce import World
from blades_dist.bilevel.weights import TaskWeights, build_weights
from blades_dist.config import PretrainConfig
from blades_dist.data.order import Position, global_batches
from blades_dist.data.read import read_split
from blades_dist.data.records import read_manifest
from blades_dist.data.stream import stream
from blades_dist.models.export import freeze, save_encoder
from blades_dist.models.joint import JointModel, build_joint_model, compile_towers
from blades_dist.tasks import TaskSet, task_set
from blades_dist.training import checkpoint
from blades_dist.training.allocator import keep_freed_memory
from blades_dist.training.checkpoint import Progress, Skipped, Stateful
from blades_dist.training.feed import Faces, Feed
from blades_dist.training.guard import NonFinite, check_equal
from blades_dist.training.loop import BilevelStep, Engine
from blades_dist.training.progress import Reporter, say
from blades_dist.training.sample import Sample, prepare
from blades_dist.training.schedule import learning_rate
from blades_dist.training.validate import validate

TRAIN, VAL = 0, 1  # which stream a random decision belongs to
STOPPED = "stopped.json"  # in the run folder, when the guard ended the run
VALIDATION_ROWS = 20_000  # enough for intervals of +-0.7%; more would keep the other ranks waiting


class TrainEngine(Engine, Stateful, Protocol):
    """An engine that steps and can be checkpointed."""


@dataclass
class Run:
    """Everything that one worker trains with."""

    config: PretrainConfig
    world: World
    device: torch.device
    tasks: TaskSet
    engine: TrainEngine
    weights: TaskWeights
    step: BilevelStep
    total_steps: int

    @property
    def leads(self) -> bool:
        return self.world.rank == 0


def pretrain_worker(settings: dict[str, Any]) -> None:
    """Runs on every worker of a Ray Train group; ``settings`` is a dumped ``PretrainConfig``."""
    run = _build(PretrainConfig.model_validate(settings))
    progress = _resume(run)
    config, reporter = run.config, None
    folder = config.storage / config.name
    if run.leads:
        images = config.train.batch_size * config.train.accumulate * run.world.size
        reporter = Reporter(folder, config.train.log_every, progress.step, run.total_steps, images, run.tasks.proxy)
    with ExitStack() as open_ends:
        if reporter:
            open_ends.enter_context(closing(reporter))
        train = open_ends.enter_context(_feed(run, config.data.train_split, TRAIN, progress.train))
        val = open_ends.enter_context(_feed(run, config.data.val_split, VAL, progress.val))
        end = _train(run, progress, train, val, reporter)
    if end is None:
        return
    if run.leads:
        _finish(run, end, folder)
    ray.train.report({"finished": True, "step": run.total_steps})


def _build(config: PretrainConfig) -> Run:
    world = World.current()
    train = config.train
    cores = os.cpu_count() or 1
    local = int(ray.train.get_context().get_local_world_size())
    torch.set_num_threads(train.threads_per_worker or max(1, cores // local))
    device = ray.train.torch.get_device()
    if device.type == "cpu":
        keep_freed_memory()
    tasks = task_set(flash=config.loss.flash)
    model = build_joint_model(config.model, tasks, train.seed, world).to(device).train()
    if train.precision == "bf16":
        model.autocast_dtype = torch.bfloat16
    if config.model.compile:
        compile_towers(model)
    engine = _deepspeed(device)(model, train, world, train.batch_size)
    weights = build_weights(config.bilevel, tasks)
    keep_results = not config.model.activation_checkpointing
    step = BilevelStep(engine, tasks, weights, config.loss, config.bilevel, train, world, keep_results)
    manifest = read_manifest(config.data.shards)
    batches = global_batches(manifest, config.data.train_split, train.batch_size * world.size, train.epochs)
    total = batches // train.accumulate
    total = min(total, train.max_steps or total)
    return Run(config, world, device, tasks, engine, weights, step, total)


def _deepspeed(device: torch.device) -> Any:
    # DeepSpeed picks its accelerator, and says so, when it is imported: only here, and only once that is known.
    if device.type == "cpu":
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
    from blades_dist.training.engine import DeepSpeedEngine

    return DeepSpeedEngine


def _resume(run: Run) -> Progress:
    found = ray.train.get_checkpoint()
    if found is None:
        return Progress(0, Position(), Position())
    with found.as_directory() as folder:
        state, progress = checkpoint.load(Path(folder), run.engine)
    run.weights.load_state_dict(state)
    if run.leads:
        value = " ".join(f"{name} {weight:.4f}" for name, weight in run.weights.as_dict().items())
        say(f"resumed at step {progress.step}/{run.total_steps} with lambda {value}")
    return progress


def _train(run: Run, progress: Progress, train: Feed, val: Feed, reporter: Reporter | None) -> Progress | None:
    """Trains to the end; None when the guard has stopped the run, at a checkpoint of the last good state."""
    config, guard = run.config, run.config.train.guard
    for step in range(progress.step, run.total_steps):
        batches, train_at, held_out, val_at = [], progress.train, None, progress.val
        for _ in range(config.train.accumulate):
            batch, train_at = next(train)
            batches.append(batch)
        if run.step.wants_validation(step):
            held_out, val_at = next(val)
        lr = learning_rate(step, run.total_steps, config.train)
        first = step * config.train.accumulate
        samples = [_sample(run, batch, TRAIN, first + i) for i, batch in enumerate(batches)]
        try:
            result = run.step.run(step, lr, samples, _sample(run, held_out, VAL, step) if held_out else None)
        except NonFinite as error:
            skipped = (*progress.skipped, Skipped(step, str(error)))
            if guard.nonfinite == "stop" or len(skipped) > guard.max_skips:
                _stop(run, progress, error)
                return None
            if run.leads:
                say(f"skipped: {error} ({len(skipped)} of at most {guard.max_skips})")
            progress = Progress(step + 1, train_at, val_at, skipped)
        else:
            if reporter:
                reporter.step(step + 1, progress.train.epoch, lr, train.waits + val.waits, result, run.weights)
            progress = Progress(step + 1, train_at, val_at, progress.skipped)
        if progress.step % config.train.checkpoint_every == 0 or progress.step == run.total_steps:
            _report(run, progress)
        elif progress.step % guard.check_every == 0:
            check_equal(run.weights, run.world, run.device, progress.step)
    if reporter:
        reporter.finish(progress.step, train.waits + val.waits)
    return progress


def _stop(run: Run, progress: Progress, error: NonFinite) -> None:
    """Saves the state before the refused step, and says why there is no more."""
    _report(run, progress)
    if run.leads:
        file = run.config.storage / run.config.name / STOPPED
        file.write_text(json.dumps({"step": error.step, "what": error.what, "tasks": error.tasks, "ids": error.ids}))
        say(f"stopped: {error}")


def _feed(run: Run, split: str, which: int, start: Position) -> Feed:
    data, train = run.config.data, run.config.train
    batches = stream(
        data.shards,
        split,
        data,
        batch_size=train.batch_size,
        rank=run.world.rank,
        world_size=run.world.size,
        seed=2 * train.seed + which,
        start=start,
        # What the outer objective is measured on stays as it is stored.
        jitter=data.jitter if which == TRAIN else 0.0,
    )
    return Feed(batches, run.device)


def _sample(run: Run, faces: Faces, which: int, step: int) -> Sample:
    seed = (run.config.train.seed, which, step)
    config = run.config.manipulate
    return prepare(faces.images, faces.landmarks, faces.labels, faces.ids, run.tasks, config, seed, run.world)


def _report(run: Run, progress: Progress) -> None:
    """Every rank takes part in collecting the state; rank 0's folder is the checkpoint."""
    check_equal(run.weights, run.world, run.device, progress.step)
    with tempfile.TemporaryDirectory() as folder:
        checkpoint.save(Path(folder), run.engine, run.weights.state_dict(), progress, write=run.leads)
        saved = ray.train.Checkpoint.from_directory(folder) if run.leads else None
        ray.train.report({"step": progress.step, "skipped": len(progress.skipped)}, checkpoint=saved)


def _finish(run: Run, progress: Progress, folder: Path) -> None:
    """What the run leaves behind for people and for the next job."""
    config = run.config
    skipped = [asdict(step) for step in progress.skipped]
    weights = {**run.weights.report(), "history": run.weights.history, "skipped_steps": skipped}
    (folder / "weights.json").write_text(json.dumps(weights))
    batches = read_split(config.data.shards, config.data.val_split, config.data.image_size, VALIDATION_ROWS)
    model = run.engine.module
    assert isinstance(model, JointModel)
    report = validate(model, batches, run.tasks, config.manipulate, config.train.seed)
    (folder / "validation.json").write_text(json.dumps(report, indent=1))
    provenance = {
        "manifest": read_manifest(config.data.shards).digest(),
        "config": config.model_dump(mode="json"),
        "version": __version__,
        "steps": run.total_steps,
        "lambda": run.weights.as_dict(),
    }
    save_encoder(freeze(model, run.tasks, config.data.image_size, provenance), folder / "encoder")
