"""The first level: Ray Tune over Train runs, as many at a time as the cluster has room for."""

import logging
import os
import shutil
from collections.abc import Callable

import ray
from ray import tune
from ray.tune import PlacementGroupFactory, RunConfig, TuneConfig

from blades_dist.settings import ConfigError
from blades_dist.tuning.config import SweepConfig
from blades_dist.tuning.ledger import DEFAULT, Ledger
from blades_dist.tuning.plan import Plan, total_steps
from blades_dist.tuning.proposals import FromOptuna, FromPopulation
from blades_dist.tuning.resources import concurrent_runs
from blades_dist.tuning.searcher import Halving, Runs
from blades_dist.tuning.trial import EncoderTrial

LEDGER = "encoders.jsonl"
_TUNE = ".tune"  # Ray Tune's own files; nothing is read from them
_RETRIES = 1  # of a trial whose process was lost; its Train run goes on from its checkpoint


class SweepError(Exception):
    """A sweep that cannot go on; says why."""


def search_encoders(config: SweepConfig, say: Callable[[str], None] = print) -> Ledger:
    """Runs what is left of the search for encoders; needs a connection to Ray. Returns everything that is known.

    Raises:
        ConfigError: not one run fits into the cluster.
        SweepError: the default configuration's run has failed, or no run has finished.
    """
    ledger = Ledger(config.folder / LEDGER)
    at_once = concurrent_runs(config)
    source = FromPopulation if config.encoders.scheduler == "population" else FromOptuna
    plan = Plan(config, ledger, source(config, ledger), _threads(config, at_once))
    if not plan.done():
        begun = sum(bool(run.reports) for run in ledger.runs.values() if run.state == "open")
        ended = sum(run.state != "open" for run in ledger.runs.values())
        say(f"encoders: {ended} runs have ended, {begun} go on; {at_once} at a time")
        _tune(config, plan, ledger, at_once, say)
    if not plan.done():
        raise SweepError("interrupted; the same command goes on where the runs have left their checkpoints")
    _check(config, ledger)
    return ledger


def _tune(config: SweepConfig, plan: Plan, ledger: Ledger, at_once: int, say: Callable[[str], None]) -> None:
    # One logger a result format, and a table a trial's every report, are nothing that anyone here reads.
    os.environ |= {"TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1", "RAY_AIR_NEW_OUTPUT": "0"}
    logging.getLogger("ray.tune").setLevel(logging.ERROR)
    steps = total_steps(config.pretrain)
    halving = Halving(config.encoders, steps, ledger) if config.encoders.scheduler == "asha" else None
    folder = config.folder / _TUNE
    shutil.rmtree(folder, ignore_errors=True)
    tuner = tune.Tuner(
        tune.with_resources(EncoderTrial, PlacementGroupFactory([{"CPU": config.driver_cpus}])),
        tune_config=TuneConfig(
            search_alg=Runs(plan, ledger, at_once, say),
            scheduler=halving,
            num_samples=-1,
            trial_name_creator=_name,
            trial_dirname_creator=_name,
        ),
        run_config=RunConfig(
            name=_TUNE,
            storage_path=str(config.folder),
            failure_config=tune.FailureConfig(max_failures=_RETRIES),
            verbose=0,
        ),
    )
    tuner.fit()
    shutil.rmtree(folder, ignore_errors=True)


def _name(trial: "tune.experiment.Trial") -> str:
    return str(trial.config["job"]).rpartition("/")[2].removesuffix(".json")


def _threads(config: SweepConfig, at_once: int) -> int | None:
    """Of torch in a worker: runs side by side share the cores."""
    if config.pretrain.train.gpu:
        return None
    cores = ray.cluster_resources().get("CPU", 1)
    return max(1, int(cores // (at_once * config.pretrain.train.worker_range[1])))


def _check(config: SweepConfig, ledger: Ledger) -> None:
    default = ledger.state(DEFAULT, config.encoders.seeds)
    if default != "finished":
        why = "; ".join(f"{run.name}: {run.why}" for run in ledger.of(DEFAULT) if run.why)
        raise SweepError(f"the default configuration's run is {default} ({why}); there is nothing to compare with")


__all__ = ["LEDGER", "ConfigError", "SweepError", "search_encoders"]
