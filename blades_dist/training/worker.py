"""Ray Train's function: what one worker does from the first step, or the last checkpoint, to the exported encoder.

The loop over steps is ``Training.run``; the learning rate is a function of the step, so resuming needs no scheduler.
"""

import json
import logging
import math
import time
from collections.abc import Sequence
from contextlib import ExitStack, closing
from dataclasses import asdict
from typing import Any

import ray.train
import ray.train.torch
import torch
from ray.train.v2._internal.execution import context

from blades_dist import __version__
from blades_dist.config import PretrainConfig, TrainConfig
from blades_dist.data.order import Position
from blades_dist.data.read import read_split
from blades_dist.data.stream import stream
from blades_dist.files import write_atomically
from blades_dist.models.export import freeze, save_encoder
from blades_dist.models.joint import JointModel
from blades_dist.training import checkpoint
from blades_dist.training.checkpoint import Progress, Skipped
from blades_dist.training.determinism import prepare_environment
from blades_dist.training.guard import NonFinite, check_equal
from blades_dist.training.loggers import open_sinks
from blades_dist.training.prefetch import Faces, Feed
from blades_dist.training.progress import Reporter, say
from blades_dist.training.provenance import describe_run, record_start
from blades_dist.training.run import Run, build, resume
from blades_dist.training.sample import Sample, SampleLog, prepare
from blades_dist.training.stopping import Listener
from blades_dist.training.validate import validate

VALIDATION_ROWS = 20_000  # enough for intervals of +-0.7%; more would keep the other ranks waiting


def begin_report(run: Run, step: int, hosts: int, command: Sequence[str]) -> Reporter:
    """Records this start of the run, after ``step`` steps; what rank 0 says from now on."""
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
    sinks = open_sinks(config, run.folder, step, say)
    images = config.train.global_batch * config.train.accumulate
    return Reporter(run.folder, config.train.log_every, step, run.total_steps, images, run.tasks.proxy, sinks)


def _report_on(run: Run, rows: int) -> dict[str, Any]:
    config = run.config
    batches = read_split(config.data.shards, config.data.val_split, config.data.image_size, rows)
    how = config.read_out or config.manipulate
    return validate(run.engine.module, batches, run.tasks, how, config.train.seed)


def read_out(run: Run) -> dict[str, float]:
    """The proxy task on held-out photographs, as metrics; the other ranks wait at their report."""
    report = _report_on(run, run.config.train.validate_rows)
    return {"coarse_auc": report["coarse_auc"]["value"], "coarse_loss": report["coarse_loss"]}


def finish(run: Run, progress: Progress) -> dict[str, float]:
    """What the run leaves behind for people and for the next job; the last read-out as metrics."""
    config, folder = run.config, run.folder
    skipped = [asdict(step) for step in progress.skipped]
    weights = {**run.weights.report(), "history": run.weights.history, "skipped_steps": skipped}
    write_atomically(folder / "weights.json", json.dumps(weights))
    report = _report_on(run, VALIDATION_ROWS)
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
    return {"coarse_auc": report["coarse_auc"]["value"], "coarse_loss": report["coarse_loss"]}


def learning_rate(step: int, total_steps: int, config: TrainConfig) -> float:
    """alpha of 0-based ``step``: linear warm-up, then cosine to zero over the run, or constant."""
    if step < config.warmup_steps:
        return config.lr * (step + 1) / config.warmup_steps
    if config.schedule == "constant":
        return config.lr
    span = max(total_steps - config.warmup_steps, 1)
    return config.lr * 0.5 * (1 + math.cos(math.pi * min((step - config.warmup_steps) / span, 1.0)))


TRAIN, VAL = 0, 1  # which stream a random decision belongs to
STOPPED = "stopped.json"  # in the run folder, when the guard ended the run
LOOK_SECONDS = 2.0  # between looks whether a node is about to be taken away: asking is a call to another process


def pretrain_worker(settings: dict[str, Any]) -> None:
    """Runs on every worker of a group; ``settings``: ``config``, a dumped ``PretrainConfig``; ``bell`` and ``command``
    of the driver."""
    # Ray Train's line for every report would stand between the run's own.
    logging.getLogger(context.__file__).addFilter(_is_no_report)
    config = PretrainConfig.model_validate(settings["config"])
    if config.train.deterministic:
        prepare_environment()
    workers_here = int(ray.train.get_context().get_local_world_size())
    run = build(config, ray.train.torch.get_device(), workers_here)
    with closing(run.writer), ExitStack() as open_ends:
        progress = resume(run)
        reporter = None
        if run.leads:
            reporter = begin_report(run, progress.step, -(-run.world.size // workers_here), settings["command"])
            open_ends.enter_context(closing(reporter))
        train = open_ends.enter_context(_feed(run, config.data.train_split, TRAIN, progress.train))
        val = open_ends.enter_context(_feed(run, config.data.val_split, VAL, progress.val))
        log = open_ends.enter_context(SampleLog(run.folder, run.world, config.train.record_samples))
        end = Training(run, train, val, log, reporter, settings["bell"]).run_from(progress)
        if end is not None:
            ray.train.report(_metrics(end) | (finish(run, end) if run.leads else {}))


def _is_no_report(record: logging.LogRecord) -> bool:
    return not str(record.msg).startswith("Reporting training result")


class Training:
    """One worker's steps from where a run stands to its end, and what is due between them."""

    def __init__(self, run: Run, train: Feed, val: Feed, log: SampleLog, reporter: Reporter | None, bell: Any) -> None:
        self.run, self.train, self.val, self.log, self.reporter = run, train, val, log, reporter
        self._listener = Listener(bell if run.leads else None)
        self._looked = time.monotonic()
        self._warned: Any = None  # the preemption that a checkpoint was already taken for

    def run_from(self, progress: Progress) -> Progress | None:
        """To the end; None when the guard or a signal has ended the run, at a checkpoint of the last good state."""
        run = self.run
        for step in range(progress.step, run.total_steps):
            try:
                progress = self._step(step, progress)
            except _Refused as refused:
                self._give_up(progress, refused.error)
                return None
            if not self._after_step(progress):
                return None
        if self.reporter:
            self.reporter.finish(progress.step, self.train.waits + self.val.waits)
        run.writer.flush()
        return progress

    def _step(self, step: int, progress: Progress) -> Progress:
        run, config = self.run, self.run.config
        batches, train_at, held_out, val_at = [], progress.train, None, progress.val
        for _ in range(config.train.accumulate):
            batch, train_at = next(self.train)
            batches.append(batch)
        if run.step.wants_validation(step):
            held_out, val_at = next(self.val)
        self.log.write(step, [batch.ids for batch in batches], held_out.ids if held_out else None)
        lr = learning_rate(step, run.total_steps, config.train)
        first = step * config.train.accumulate
        samples = [_sample(run, batch, TRAIN, first + i) for i, batch in enumerate(batches)]
        try:
            result = run.step.run(step, lr, samples, _sample(run, held_out, VAL, step) if held_out else None)
        except NonFinite as error:
            return Progress(step + 1, train_at, val_at, self._skipped(step, progress, error))
        if self.reporter:
            waits = self.train.waits + self.val.waits
            self.reporter.step(step + 1, progress.train.epoch, lr, waits, result, run.weights)
        return Progress(step + 1, train_at, val_at, progress.skipped)

    def _skipped(self, step: int, progress: Progress, error: NonFinite) -> tuple[Skipped, ...]:
        guard = self.run.config.train.guard
        skipped = (*progress.skipped, Skipped(step, str(error)))
        if guard.nonfinite == "stop" or len(skipped) > guard.max_skips:
            raise _Refused(error)
        if self.run.leads:
            say(f"skipped: {error} ({len(skipped)} of at most {guard.max_skips})")
        return skipped

    def _give_up(self, progress: Progress, error: NonFinite) -> None:
        """Saves the state before the refused step, and says why there is no more."""
        self._save(progress)
        self.run.writer.flush()
        if self.run.leads:
            what = {"step": error.step, "what": error.what, "tasks": error.tasks, "ids": error.ids}
            write_atomically(self.run.folder / STOPPED, json.dumps({**what, "saved_step": progress.step}))
            say(f"stopped: {error}")

    def _after_step(self, progress: Progress) -> bool:
        """Checkpoints, checks and reports that are due; False when the run is to stop, at a complete checkpoint."""
        run, train, step = self.run, self.run.config.train, progress.step
        stop, look = self._signs()
        due = step % train.checkpoint_every == 0 or step == run.total_steps
        warned = look and self._preempted()
        if due or stop or warned:
            self._save(progress)
        elif step % train.guard.check_every == 0:
            check_equal(run.weights, run.world, run.device, step)
        if stop or warned:
            run.writer.flush()
            if run.leads:
                why = "stopped on request" if stop else "a node is about to be taken away"
                say(f"{why}: the checkpoint of step {step} is complete")
        if due or (train.validate_every is not None and step % train.validate_every == 0):
            self._report(progress)
        return not stop

    def _signs(self) -> tuple[bool, bool]:
        """What all workers are to do alike after this step: stop, ask about preemption. One small collective."""
        run, now = self.run, time.monotonic()
        look = run.leads and now - self._looked >= LOOK_SECONDS
        if look:
            self._looked = now
        # One worker asks nobody, so it need not wait for its device either.
        device = run.device if run.world.size > 1 else torch.device("cpu")
        signs = torch.tensor([self._listener.rung, look, *run.writer.outlook], dtype=torch.int64, device=device)
        stop, look, written, failed = run.world.sum(signs).tolist()
        run.writer.agreed(written, failed)
        return bool(stop), bool(look)

    def _preempted(self) -> bool:
        """Whether a node of this group is to be taken away that no checkpoint was taken for yet; every rank calls."""
        info = ray.train.get_preemption_info()
        if info is None or info == self._warned:
            return False
        self._warned = info
        return True

    def _save(self, progress: Progress) -> None:
        """Every rank takes part in collecting the state and writes its share of it, while training goes on."""
        run = self.run
        check_equal(run.weights, run.world, run.device, progress.step)
        weights = run.weights.state_dict()
        run.writer.begin(checkpoint.snapshot(run.engine, weights, progress, run.world, run.manifest))

    def _report(self, progress: Progress) -> None:
        """Metrics for Ray, where it waits for all ranks; the read-out of the end is ``finish``'s."""
        run, every, step = self.run, self.run.config.train.validate_every, progress.step
        values: dict[str, float] = {}
        if run.leads and every is not None and step % every == 0 and step < run.total_steps:
            values = read_out(run)
        if self.reporter and values:
            self.reporter.scalars(step, {f"val/{name}": value for name, value in values.items()})
        ray.train.report(_metrics(progress) | values)


class _Refused(Exception):
    """A step that the guard does not let pass."""

    def __init__(self, error: NonFinite) -> None:
        super().__init__(str(error))
        self.error = error


def _metrics(progress: Progress) -> dict[str, Any]:
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
