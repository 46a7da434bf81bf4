"""Ray Train's function: what one worker does from the first step, or the last checkpoint, to the exported encoder.

Top-down: ``train_worker`` sets up, ``Trainer.train`` is the loop (load, step, save, validate), ``export`` ends it.
The learning rate is a function of the step, so resuming needs no scheduler.
"""

import json
import math
import time
from collections.abc import Sequence
from contextlib import ExitStack, closing
from dataclasses import asdict, dataclass
from typing import Any

import ray.train
import ray.train.torch
import torch

from blades_dist import __version__
from blades_dist.config import PretrainConfig, TrainConfig
from blades_dist.data.order import Position
from blades_dist.data.read import read_split
from blades_dist.data.stream import stream
from blades_dist.files import write_atomically
from blades_dist.models.export import freeze, save_encoder
from blades_dist.models.joint import JointModel
from blades_dist.ray_private import mute_train_reports
from blades_dist.training import checkpoint
from blades_dist.training.checkpoint import Progress, Skipped
from blades_dist.training.determinism import prepare_environment
from blades_dist.training.entry import STOPPED
from blades_dist.training.guard import NonFinite, check_equal
from blades_dist.training.loggers import open_loggers
from blades_dist.training.memory import explained
from blades_dist.training.prefetch import Faces, Feed, Waits
from blades_dist.training.progress import Reporter, say
from blades_dist.training.provenance import describe_run, record_start
from blades_dist.training.run import Run, build, resume
from blades_dist.training.sample import Sample, SampleLog, prepare
from blades_dist.training.stopping import StopListener
from blades_dist.training.validate import validate

VALIDATION_ROWS = 20_000  # enough for intervals of +-0.7%; more would keep the other ranks waiting
TRAIN, VAL = 0, 1  # which stream a random decision belongs to
PREEMPTION_SECONDS = 2.0  # between questions whether a node is about to be preempted: a call to another process


def train_worker(settings: dict[str, Any]) -> None:
    """Runs on every worker of a group; ``settings``: ``config``, a dumped ``PretrainConfig``; the driver's
    ``stop_signal`` and ``command``."""
    mute_train_reports()  # they would stand between the run's own lines
    config = PretrainConfig.model_validate(settings["config"])
    prepare_environment(config.train.deterministic)
    workers_here = int(ray.train.get_context().get_local_world_size())
    run = build(config, ray.train.torch.get_device(), workers_here)
    with closing(run.writer), ExitStack() as stack:
        progress = resume(run)
        reporter = None
        if run.leads:
            reporter = start_report(run, progress.step, -(-run.world.size // workers_here), settings["command"])
            stack.enter_context(closing(reporter))
        train = stack.enter_context(_feed(run, config.data.train_split, TRAIN, progress.train))
        val = stack.enter_context(_feed(run, config.data.val_split, VAL, progress.val))
        log = stack.enter_context(SampleLog(run.folder, run.world, config.train.record_samples))
        with explained(config):
            end = Trainer(run, train, val, log, reporter, settings["stop_signal"]).train(progress)
        if end is not None:
            ray.train.report(_progress_metrics(end) | (export(run, end) if run.leads else {}))


@dataclass(frozen=True)
class StepData:
    """The micro-batches of one step, the validation batch if the step has one, and where both streams stand then."""

    train: list[Sample]
    val: Sample | None
    train_position: Position
    val_position: Position


class Trainer:
    """One worker's training loop, from where a run stands to its end."""

    def __init__(
        self, run: Run, train: Feed, val: Feed, log: SampleLog, reporter: Reporter | None, stop_signal: Any
    ) -> None:
        self.run, self.train_feed, self.val_feed, self.log, self.reporter = run, train, val, log, reporter
        self._stop = StopListener(stop_signal if run.leads else None)
        self._asked = time.monotonic()
        self._preemption: Any = None  # the one that a checkpoint was already taken for

    def train(self, progress: Progress) -> Progress | None:
        """To the end; None when the guard or a signal has ended the run, at a checkpoint of the last good state."""
        while progress.step < self.run.total_steps:
            data = self._load(progress)
            try:
                progress = self._train_step(data, progress)
            except _GuardStop as stopped:
                self._save_refused(progress, stopped.error)
                return None
            stop = self._save_if_due(progress)
            self._validate_if_due(progress)
            if stop:
                return None
        if self.reporter:
            self.reporter.finish(progress.step, self._waits)
        self.run.writer.flush()
        return progress

    def _load(self, progress: Progress) -> StepData:
        run, step, accumulate = self.run, progress.step, self.run.config.train.accumulate
        batches, train_position, val_batch, val_position = [], progress.train, None, progress.val
        for _ in range(accumulate):
            batch, train_position = next(self.train_feed)
            batches.append(batch)
        if run.step.wants_validation(step):
            val_batch, val_position = next(self.val_feed)
        self.log.write(step, [batch.ids for batch in batches], val_batch.ids if val_batch else None)
        train = [_sample(run, batch, TRAIN, step * accumulate + i) for i, batch in enumerate(batches)]
        val = _sample(run, val_batch, VAL, step) if val_batch else None
        return StepData(train, val, train_position, val_position)

    def _train_step(self, data: StepData, progress: Progress) -> Progress:
        run, step, skipped = self.run, progress.step, progress.skipped
        lr = learning_rate(step, run.total_steps, run.config.train)
        try:
            result = run.step.run(step, lr, data.train, data.val)
        except NonFinite as error:
            skipped = self._skip(step, progress, error)
        else:
            if self.reporter:
                self.reporter.step(step + 1, progress.train.epoch, lr, self._waits, result, run.weights)
        return Progress(step + 1, data.train_position, data.val_position, skipped)

    def _skip(self, step: int, progress: Progress, error: NonFinite) -> tuple[Skipped, ...]:
        """The skipped steps with this one.

        Raises:
            _GuardStop: the guard is to stop at once, or too many steps were skipped.
        """
        guard = self.run.config.train.guard
        skipped = (*progress.skipped, Skipped(step, str(error)))
        if guard.nonfinite == "stop" or len(skipped) > guard.max_skips:
            raise _GuardStop(error)
        if self.run.leads:
            say(f"skipped: {error} ({len(skipped)} of at most {guard.max_skips})")
        return skipped

    def _save_refused(self, progress: Progress, error: NonFinite) -> None:
        """Saves the state before the refused step, and why the run ends."""
        self._save(progress)
        self.run.writer.flush()
        if self.run.leads:
            what = {"step": error.step, "what": error.what, "tasks": error.tasks, "ids": error.ids}
            write_atomically(self.run.folder / STOPPED, json.dumps({**what, "saved_step": progress.step}))
            say(f"stopped: {error}")

    def _save_if_due(self, progress: Progress) -> bool:
        """A checkpoint, or the check of the guard, where one is due; whether the run is to stop at it."""
        run, guard, step = self.run, self.run.config.train.guard, progress.step
        stop, ask = self._agree()
        preempted = ask and self._preempted()
        if self._checkpoint_due(step) or stop or preempted:
            self._save(progress)
        elif step % guard.check_every == 0:
            check_equal(run.weights, run.world, run.device, step)
        if stop or preempted:
            run.writer.flush()
            if run.leads:
                why = "stopped on request" if stop else "a node is about to be taken away"
                say(f"{why}: the checkpoint of step {step} is complete")
        return stop

    def _validate_if_due(self, progress: Progress) -> None:
        """Metrics for Ray, where it waits for all ranks; the validation after the last step is ``export``'s."""
        run, every, step = self.run, self.run.config.train.validate_every, progress.step
        due = every is not None and step % every == 0
        if not (due or self._checkpoint_due(step)):
            return
        values = validation_metrics(run) if run.leads and due and step < run.total_steps else {}
        if self.reporter and values:
            self.reporter.log(step, {f"val/{name}": value for name, value in values.items()})
        ray.train.report(_progress_metrics(progress) | values)

    def _checkpoint_due(self, step: int) -> bool:
        return step % self.run.config.train.checkpoint_every == 0 or step == self.run.total_steps

    def _agree(self) -> tuple[bool, bool]:
        """What all workers do alike after this step: stop, ask about preemption. One small collective."""
        run, now = self.run, time.monotonic()
        ask = run.leads and now - self._asked >= PREEMPTION_SECONDS
        if ask:
            self._asked = now
        # One worker asks nobody, so it need not wait for its device either.
        device = run.device if run.world.size > 1 else torch.device("cpu")
        flags = torch.tensor([self._stop.requested, ask, *run.writer.outlook], dtype=torch.int64, device=device)
        stop, ask, written, failed = run.world.sum(flags).tolist()
        run.writer.agreed(written, failed)
        return bool(stop), bool(ask)

    def _preempted(self) -> bool:
        """Whether a node of this group is to be preempted that no checkpoint was taken for yet; every rank calls."""
        info = ray.train.get_preemption_info()
        if info is None or info == self._preemption:
            return False
        self._preemption = info
        return True

    def _save(self, progress: Progress) -> None:
        """Every rank takes part in collecting the state and writes its share of it, while training goes on."""
        run = self.run
        check_equal(run.weights, run.world, run.device, progress.step)
        weights = run.weights.state_dict()
        run.writer.begin(checkpoint.snapshot(run.engine, weights, progress, run.world, run.manifest))

    @property
    def _waits(self) -> Waits:
        return self.train_feed.waits + self.val_feed.waits


class _GuardStop(Exception):
    """The guard ends the run at this step."""

    def __init__(self, error: NonFinite) -> None:
        super().__init__(str(error))
        self.error = error


def learning_rate(step: int, total_steps: int, config: TrainConfig) -> float:
    """alpha of 0-based ``step``: linear warm-up, then cosine to zero over the run, or constant."""
    if step < config.warmup_steps:
        return config.lr * (step + 1) / config.warmup_steps
    if config.schedule == "constant":
        return config.lr
    span = max(total_steps - config.warmup_steps, 1)
    return config.lr * 0.5 * (1 + math.cos(math.pi * min((step - config.warmup_steps) / span, 1.0)))


def start_report(run: Run, step: int, hosts: int, command: Sequence[str]) -> Reporter:
    """Records this start of the run, after ``step`` steps; the reporter of rank 0."""
    config = run.config
    start = describe_run(
        config,
        run.manifest,
        device=run.device,
        world_size=run.world.size,
        hosts=hosts,
        step=step,
        command=command,
    )
    record_start(run.folder, start, say)
    loggers = open_loggers(config, run.folder, step, say)
    images = config.train.global_batch * config.train.accumulate
    return Reporter(run.folder, config.train.log_every, step, run.total_steps, images, run.tasks.proxy, loggers)


def validation_metrics(run: Run) -> dict[str, float]:
    """The proxy task on held-out photographs, as metrics; the other ranks wait at their report."""
    return _coarse(_validation_report(run, run.config.train.validate_rows))


def export(run: Run, progress: Progress) -> dict[str, float]:
    """Writes the task weights, the validation report and the frozen encoder; the last validation as metrics."""
    config, folder = run.config, run.folder
    skipped = [asdict(step) for step in progress.skipped]
    weights = {**run.weights.report(), "history": run.weights.history, "skipped_steps": skipped}
    write_atomically(folder / "weights.json", json.dumps(weights))
    report = _validation_report(run, VALIDATION_ROWS)
    write_atomically(folder / "validation.json", json.dumps(report, indent=1))
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
    return _coarse(report)


def _validation_report(run: Run, rows: int) -> dict[str, Any]:
    config = run.config
    batches = read_split(config.data.shards, config.data.val_split, config.data.image_size, rows)
    how = config.read_out or config.manipulate
    return validate(run.engine.module, batches, run.tasks, how, config.train.seed)


def _coarse(report: dict[str, Any]) -> dict[str, float]:
    return {"coarse_auc": report["coarse_auc"]["value"], "coarse_loss": report["coarse_loss"]}


def _progress_metrics(progress: Progress) -> dict[str, Any]:
    return {"step": progress.step, "epoch": progress.train.epoch, "skipped": len(progress.skipped)}


def _feed(run: Run, split: str, which: int, start: Position) -> Feed:
    data, train = run.config.data, run.config.train
    rows = train.global_batch if which == TRAIN else run.config.val_batch
    batches = stream(
        data.shards,
        split,
        data,
        batch_size=rows // run.world.size,
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
