"""Ray Train's function: what one worker does from the first step, or the last checkpoint, to the exported encoder."""

import json
import os
import time
from contextlib import ExitStack, closing
from dataclasses import asdict, dataclass, field
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
from blades_dist.training import checkpoint, store
from blades_dist.training.allocator import keep_freed_memory
from blades_dist.training.checkpoint import Progress, Skipped, Stateful
from blades_dist.training.feed import Faces, Feed
from blades_dist.training.guard import NonFinite, check_equal
from blades_dist.training.loop import BilevelStep, Engine
from blades_dist.training.progress import Reporter, say
from blades_dist.training.sample import Sample, prepare
from blades_dist.training.samples import SampleLog
from blades_dist.training.schedule import learning_rate
from blades_dist.training.stopping import Listener
from blades_dist.training.validate import validate

TRAIN, VAL = 0, 1  # which stream a random decision belongs to
STOPPED = "stopped.json"  # in the run folder, when the guard ended the run
VALIDATION_ROWS = 20_000  # enough for intervals of +-0.7%; more would keep the other ranks waiting
LOOK_SECONDS = 2.0  # between looks whether a node is about to be taken away: asking is a call to another process


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
    writer: store.Writer
    listener: Listener
    looked: float = field(default_factory=time.monotonic)
    warned: Any = None  # the preemption that a checkpoint was already taken for

    @property
    def leads(self) -> bool:
        return self.world.rank == 0

    @property
    def folder(self) -> Path:
        return self.config.storage / self.config.name

    @property
    def batch_size(self) -> int:
        """This worker's rows of a micro-batch: the global batch is the same for any number of workers."""
        return self.config.train.global_batch // self.world.size


def pretrain_worker(settings: dict[str, Any]) -> None:
    """Runs on every worker of a group; ``settings``: ``config``, a dumped ``PretrainConfig``, and the ``bell``."""
    run = _build(PretrainConfig.model_validate(settings["config"]), settings["bell"])
    with closing(run.writer):
        progress = _resume(run)
        config, reporter = run.config, None
        if run.leads:
            images = config.train.global_batch * config.train.accumulate
            reporter = Reporter(
                run.folder, config.train.log_every, progress.step, run.total_steps, images, run.tasks.proxy
            )
        with ExitStack() as open_ends:
            if reporter:
                open_ends.enter_context(closing(reporter))
            train = open_ends.enter_context(_feed(run, config.data.train_split, TRAIN, progress.train))
            val = open_ends.enter_context(_feed(run, config.data.val_split, VAL, progress.val))
            samples = open_ends.enter_context(SampleLog(run.folder, run.world, config.train.record_samples))
            end = _train(run, progress, train, val, reporter, samples)
        if end is None:
            return
        metrics = _finish(run, end) if run.leads else {}
        ray.train.report(_metrics(end) | metrics)


def _build(config: PretrainConfig, bell: Any) -> Run:
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
    engine = _deepspeed(device)(model, train, world, train.global_batch // world.size)
    weights = build_weights(config.bilevel, tasks)
    keep_results = not config.model.activation_checkpointing
    step = BilevelStep(engine, tasks, weights, config.loss, config.bilevel, train, world, keep_results)
    manifest = read_manifest(config.data.shards)
    batches = global_batches(manifest, config.data.train_split, train.global_batch, train.epochs)
    total = batches // train.accumulate
    total = min(total, train.max_steps or total)
    folder = config.storage / config.name / store.FOLDER
    writer = store.Writer(folder, world, device, train.keep_checkpoints)
    listener = Listener(bell if world.rank == 0 else None)
    return Run(config, world, device, manifest.digest(), tasks, engine, weights, step, total, writer, listener)


def _deepspeed(device: torch.device) -> Any:
    # DeepSpeed picks its accelerator, and says so, when it is imported: only here, and only once that is known.
    if device.type == "cpu":
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
    from blades_dist.training.engine import DeepSpeedEngine

    return DeepSpeedEngine


def _resume(run: Run) -> Progress:
    """The newest intact checkpoint of this run, else the one it is to start from, else the beginning."""
    path, start = _newest(run), run.config.start_from
    own = path is not None
    if path is None and start is not None:
        path = store.locate(start)
    if path is None:
        return Progress(0, Position(), Position())
    state, progress = checkpoint.restore(*store.read(path), run.engine, run.world)
    run.weights.load_state_dict(state)
    if run.leads:
        value = " ".join(f"{name} {weight:.4f}" for name, weight in run.weights.as_dict().items())
        how = "resumed" if own else f"started from {path}"
        say(f"{how} at step {progress.step}/{run.total_steps} with {run.world.size} workers, lambda {value}")
    return progress


def _newest(run: Run) -> Path | None:
    """Rank 0 looks and verifies; the others are told."""
    step = -1
    if run.leads:
        found = store.newest(run.writer.folder, say)
        step = store.step_of(found) if found else -1
    step = int(run.world.sum(torch.tensor([step if run.leads else 0], device=run.device)))
    return store.path_of(run.writer.folder, step) if step >= 0 else None


def _train(
    run: Run, progress: Progress, train: Feed, val: Feed, reporter: Reporter | None, log: SampleLog
) -> Progress | None:
    """Trains to the end; None when the guard or a signal has ended the run, at a checkpoint of the last good state."""
    config, guard = run.config, run.config.train.guard
    for step in range(progress.step, run.total_steps):
        batches, train_at, held_out, val_at = [], progress.train, None, progress.val
        for _ in range(config.train.accumulate):
            batch, train_at = next(train)
            batches.append(batch)
        if run.step.wants_validation(step):
            held_out, val_at = next(val)
        log.write(step, [batch.ids for batch in batches], held_out.ids if held_out else None)
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
        if not _after_step(run, progress):
            return None
    if reporter:
        reporter.finish(progress.step, train.waits + val.waits)
    run.writer.flush()
    return progress


def _after_step(run: Run, progress: Progress) -> bool:
    """Checkpoints, checks and reports that are due; False when the run is to stop, at a complete checkpoint."""
    train, step = run.config.train, progress.step
    stop, look = _signs(run)
    due = step % train.checkpoint_every == 0 or step == run.total_steps
    if due or stop:
        _save(run, progress)
    elif step % train.guard.check_every == 0:
        check_equal(run.weights, run.world, run.device, step)
    if look and _preempted(run):
        if not (due or stop):
            _save(run, progress)
        run.writer.flush()
        if run.leads:
            say(f"a node is about to be taken away; the checkpoint of step {step} is complete")
    read_out = train.validate_every is not None and step % train.validate_every == 0 and step < run.total_steps
    if read_out or due:
        ray.train.report(_metrics(progress) | (_read_out(run) if read_out and run.leads else {}))
    if stop:
        run.writer.flush()
        if run.leads:
            say(f"stopped on request: the checkpoint of step {step} is complete")
    return not stop


def _signs(run: Run) -> tuple[bool, bool]:
    """What all workers are to do alike after this step: stop, and ask about preemption. One small collective."""
    stop = run.listener.rung
    now = time.monotonic()
    look = run.leads and now - run.looked >= LOOK_SECONDS
    if look:
        run.looked = now
    signs = torch.tensor([stop, look, *run.writer.outlook], dtype=torch.int64, device=run.device)
    stop, look, written, failed = run.world.sum(signs).tolist()
    run.writer.agreed(written, failed)
    return bool(stop), bool(look)


def _preempted(run: Run) -> bool:
    """Whether a node of this group is to be taken away that no checkpoint was taken for yet; every rank calls."""
    info = ray.train.get_preemption_info()
    if info is None or info == run.warned:
        return False
    run.warned = info
    return True


def _stop(run: Run, progress: Progress, error: NonFinite) -> None:
    """Saves the state before the refused step, and says why there is no more."""
    _save(run, progress)
    run.writer.flush()
    if run.leads:
        what = {"step": error.step, "what": error.what, "tasks": error.tasks, "ids": error.ids}
        (run.folder / STOPPED).write_text(json.dumps({**what, "saved_step": progress.step}))
        say(f"stopped: {error}")


def _save(run: Run, progress: Progress) -> None:
    """Every rank takes part in collecting the state and writes its share of it, while training goes on."""
    check_equal(run.weights, run.world, run.device, progress.step)
    run.writer.begin(checkpoint.snapshot(run.engine, run.weights.state_dict(), progress, run.world, run.manifest))


def _metrics(progress: Progress) -> dict[str, Any]:
    return {"step": progress.step, "epoch": progress.train.epoch, "skipped": len(progress.skipped)}


def _feed(run: Run, split: str, which: int, start: Position) -> Feed:
    data, train = run.config.data, run.config.train
    batches = stream(
        data.shards,
        split,
        data,
        batch_size=run.batch_size,
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


def _report_on(run: Run, rows: int) -> dict[str, Any]:
    config = run.config
    batches = read_split(config.data.shards, config.data.val_split, config.data.image_size, rows)
    how = config.read_out or config.manipulate
    return validate(run.engine.module, batches, run.tasks, how, config.train.seed)


def _read_out(run: Run) -> dict[str, float]:
    """The proxy task on held-out photographs, as metrics; the other ranks wait at their report."""
    report = _report_on(run, run.config.train.validate_rows)
    return {"coarse_auc": report["coarse_auc"]["value"], "coarse_loss": report["coarse_loss"]}


def _finish(run: Run, progress: Progress) -> dict[str, float]:
    """What the run leaves behind for people and for the next job; the last read-out as metrics."""
    config, folder = run.config, run.folder
    skipped = [asdict(step) for step in progress.skipped]
    weights = {**run.weights.report(), "history": run.weights.history, "skipped_steps": skipped}
    (folder / "weights.json").write_text(json.dumps(weights))
    report = _report_on(run, VALIDATION_ROWS)
    (folder / "validation.json").write_text(json.dumps(report, indent=1))
    provenance = {
        "manifest": run.manifest,
        "config": config.model_dump(mode="json"),
        "version": __version__,
        "steps": run.total_steps,
        "lambda": run.weights.as_dict(),
    }
    model = run.engine.module
    assert isinstance(model, JointModel)
    save_encoder(freeze(model, run.tasks, config.data.image_size, provenance), folder / "encoder")
    return {"coarse_auc": report["coarse_auc"]["value"], "coarse_loss": report["coarse_loss"]}
