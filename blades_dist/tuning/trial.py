"""The encoder trial: Tune's function, and the class around it that ends the Train run that the function has started."""

import json
from pathlib import Path
from typing import Any

from ray import tune
from ray.tune.trainable import wrap_function

from blades_dist.files import write_atomically
from blades_dist.models.encoder_info import DESCRIPTION
from blades_dist.training.worker import STOPPED
from blades_dist.tuning.features import faces_of
from blades_dist.tuning.objective import score, terms
from blades_dist.tuning.plan import Job
from blades_dist.tuning.train_run import METRIC, TrainRun

MEASURED = "objective.json"  # in a run folder
_live: list[TrainRun] = []  # of this process, which is one trial


def train_encoder(config: dict[str, Any]) -> None:
    """Trains and measures an encoder; ``config["job"]`` is the file of a ``Job``.

    Every report has ``step`` and ``coarse_auc``. The last one says how it ended: ``finished`` (with ``terms`` and
    ``score`` where the encoder is measured) or ``failed`` (why).
    """
    job = Job.model_validate_json(Path(config["job"]).read_text())
    last: dict[str, Any] = {"step": 0, METRIC: 0.0}
    if not (job.folder / "encoder" / DESCRIPTION).is_file():
        (job.folder / STOPPED).unlink(missing_ok=True)
        run = TrainRun(job.pretrain)
        _live.append(run)
        for metrics in run.reports():
            last = {"step": metrics["step"], METRIC: metrics[METRIC]}
            tune.report(dict(last))
        run.end()
    if not (job.folder / "encoder" / DESCRIPTION).is_file():
        tune.report({**last, "failed": _why(job.folder)})
        return
    tune.report({**last, "finished": True, **(_measured(job) if job.measured else {})})


class EncoderTrial(wrap_function(train_encoder)):  # type: ignore[misc]
    """``train_encoder`` for Tune: when Tune stops a trial, its Train run is ended with it."""

    def cleanup(self) -> None:
        for run in _live:
            run.end()
        _live.clear()
        super().cleanup()


def _measured(job: Job) -> dict[str, Any]:
    """Terms and score of the default detector on this encoder; computed once."""
    file = job.folder / MEASURED
    if not file.is_file():
        faces = faces_of(job.folder / "encoder", job.sweep, actors=1)
        seed = job.sweep.fit.seed + job.pretrain.train.seed - job.sweep.pretrain.train.seed
        found = terms(job.sweep.fit, faces, seed, job.sweep.objective)
        result = {"terms": found, "score": score(found, job.sweep.objective)}
        write_atomically(file, json.dumps(result, indent=1))
    return dict(json.loads(file.read_text()))


def _why(folder: Path) -> str:
    if not (folder / STOPPED).is_file():
        return "the run ended without an encoder"
    stopped = json.loads((folder / STOPPED).read_text())
    return f"step {stopped['step']}: {stopped['what']} of {', '.join(stopped['tasks']) or 'all tasks'} is not finite"
