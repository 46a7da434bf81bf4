"""What a run says while it trains, and what it leaves behind for people and for the next job. No Ray here."""

import json
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from blades_dist import __version__
from blades_dist.data.read import read_split
from blades_dist.files import write_atomically
from blades_dist.models.export import freeze, save_encoder
from blades_dist.models.joint import JointModel
from blades_dist.training.checkpoint import Progress
from blades_dist.training.progress import Reporter, say
from blades_dist.training.record import describe_run, record_start
from blades_dist.training.run import Run
from blades_dist.training.sinks import open_sinks
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
