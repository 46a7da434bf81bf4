"""The next run of a sweep: unfinished runs, further seeds of finished candidates, then new candidates. No Ray."""

from pathlib import Path

from blades_dist.config import PretrainConfig
from blades_dist.data.order import global_batches
from blades_dist.data.records import read_manifest
from blades_dist.files import write_atomically
from blades_dist.settings import Config
from blades_dist.tuning.config import SweepConfig, applied
from blades_dist.tuning.ledger import DEFAULT, Candidate, Ledger, Run
from blades_dist.tuning.proposals import Proposals

ENCODERS, JOBS = "encoders", "jobs"


class Job(Config):
    """One encoder trial: the Train run, and whether its encoder is measured by the objective at the end."""

    run: str
    pretrain: PretrainConfig
    measured: bool
    sweep: SweepConfig

    @property
    def folder(self) -> Path:
        """The run's folder."""
        return self.pretrain.storage / self.pretrain.name


class Plan:
    """Hands out jobs and takes in what becomes of them; ``threads`` are those of a worker where none are configured."""

    def __init__(self, config: SweepConfig, ledger: Ledger, proposals: Proposals, threads: int | None = None) -> None:
        self._config, self._ledger, self._proposals, self._threads = config, ledger, proposals, threads
        self._live: set[str] = set()
        if DEFAULT not in ledger.candidates:
            ledger.add(Candidate(DEFAULT, {}))

    def next(self) -> Path | None:
        """File of a job to run now; None: none now."""
        run = self._open() or self._further_seed() or self._new()
        if run is None:
            return None
        self._live.add(run.name)
        return self._written(run)

    def done(self) -> bool:
        """Whether nothing runs and nothing will."""
        return not self._live and self._proposals.exhausted() and not self._open() and not self._wanted()

    def report(self, run: str, step: int, value: float) -> None:
        self._ledger.report(run, step, value)

    def end(self, run: str, **result: object) -> None:
        """The run has come to its end; see ``Ledger.end``."""
        self._ledger.end(run, **result)  # type: ignore[arg-type]
        self._live.discard(run)
        candidate = self._ledger.runs[run].candidate
        if self._ledger.state(candidate, self._config.encoders.seeds) != "open":
            self._proposals.ended(candidate)

    def _open(self) -> Run | None:
        return next(
            (one for one in self._ledger.runs.values() if one.state == "open" and one.name not in self._live), None
        )

    def _wanted(self) -> tuple[int, int] | None:
        """(candidate, seed) whose earlier seeds have all finished."""
        for number in self._ledger.candidates:
            runs = self._ledger.of(number)
            if len(runs) < self._config.encoders.seeds and all(run.state == "finished" for run in runs):
                return number, len(runs)
        return None

    def _further_seed(self) -> Run | None:
        wanted = self._wanted()
        return self._ledger.start(*wanted) if wanted else None

    def _new(self) -> Run | None:
        candidate = self._proposals.next()
        if candidate is None:
            return None
        self._ledger.add(candidate)
        return self._ledger.start(candidate.number, 0)

    def _written(self, run: Run) -> Path:
        file = self._config.folder / JOBS / f"{run.name}.json"
        if not file.is_file():  # a job stays what it was when a sweep goes on
            write_atomically(file, self._job(run).model_dump_json(indent=1))
        return file

    def _job(self, run: Run) -> Job:
        config, search = self._config, self._config.encoders
        candidate = self._ledger.candidates[run.candidate]
        train: dict[str, object] = {"seed": config.pretrain.train.seed + run.seed}
        if config.pretrain.train.threads_per_worker is None and self._threads is not None:
            train["threads_per_worker"] = self._threads
        train["validate_every"] = search.validate_every
        # All trials are validated on the same manipulations, whichever they train on.
        read_out = config.objective.reference.model_copy(update={"photographic_share": 0.5})
        measured = True
        start: dict[str, object] = {}
        if search.scheduler == "population" and run.candidate != DEFAULT:
            part = candidate.generation + 1
            train["max_steps"] = -(-total_steps(config.pretrain) * part // search.generations)
            measured = part == search.generations
            if candidate.parent:
                start["start_from"] = config.folder / ENCODERS / f"{config.name}-{candidate.parent}"
        base = config.pretrain.model_copy(
            update={
                "name": f"{config.name}-{run.name}",
                "storage": config.folder / ENCODERS,
                "train": config.pretrain.train.model_copy(update=train),
                "read_out": read_out,
                **start,
            }
        )
        return Job(run=run.name, pretrain=applied(base, candidate.values), measured=measured, sweep=config)


def total_steps(config: PretrainConfig) -> int:
    """Optimiser steps of a whole run."""
    train = config.train
    manifest = read_manifest(config.data.shards)
    batches = global_batches(manifest, config.data.train_split, train.global_batch, train.epochs)
    return min(batches // train.accumulate, train.max_steps or batches)
