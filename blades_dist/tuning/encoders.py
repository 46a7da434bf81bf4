"""The first level: Ray Tune over Train runs, as many at a time as the cluster has room for."""

import logging
import os
import shutil
from collections.abc import Callable, Mapping, Sequence

import ray
from ray import tune
from ray.tune import PlacementGroupFactory, RunConfig, TuneConfig

from blades_dist.settings import ConfigError
from blades_dist.tuning.config import SweepConfig
from blades_dist.tuning.ledger import DEFAULT, Ledger
from blades_dist.tuning.plan import Plan, total_steps
from blades_dist.tuning.proposals import FromOptuna, FromPopulation
from blades_dist.tuning.searcher import PlanSearcher, ResumableASHA
from blades_dist.tuning.trial import EncoderTrial

Bundle = dict[str, float]
_TOLERANCE = 1e-6


def bundles(config: SweepConfig) -> list[Bundle]:
    """What one encoder run occupies: every worker with the share of its decoding tasks, and the driving function.

    Workers start all or none (a placement group), so two runs cannot each hold a part. What could still starve is
    the decoding, which lies outside of the group: counted here, there is always a core left for it.
    """
    train, data = config.pretrain.train, config.pretrain.data
    worker: Bundle = {"CPU": train.cpus_per_worker + data.task_cpus}
    if train.gpu:
        worker["GPU"] = train.gpu_per_worker
    return [worker] * train.worker_range[1] + [{"CPU": config.driver_cpus}]


def fitting(nodes: Sequence[Mapping[str, float]], run: Sequence[Bundle]) -> int:
    """How many runs have room on nodes of these resources, placed one after another where there is room first."""
    free = [dict(node) for node in nodes]
    count = 0
    while all(_place(free, bundle) for bundle in run):
        count += 1
    return count


def concurrent_runs(config: SweepConfig) -> int:
    """Runs at a time: ``config.concurrent`` at most, and no more than fit. Needs a connection to Ray.

    Raises:
        ConfigError: not even one fits.
    """
    run = bundles(config)
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    count = fitting(nodes, run)
    if not count:
        workers = len(run) - 1
        need = " and ".join(f"{amount:g} {name}" for name, amount in run[0].items())
        have = "; ".join(", ".join(f"{node.get(name, 0):g} {name}" for name in run[0]) for node in nodes)
        raise ConfigError(
            f"pretrain.train.workers: one encoder run needs {need} for each of {workers} workers (of that "
            f"{config.pretrain.data.task_cpus:g} CPU, data.task_cpus, for decoding) and {config.driver_cpus:g} CPU to "
            f"drive it; the cluster's nodes have: {have}. Use fewer workers, or a smaller train.cpus_per_worker"
        )
    return min(count, config.concurrent or count)


def _place(free: list[Bundle], bundle: Bundle) -> bool:
    for node in free:
        if all(node.get(name, 0.0) + _TOLERANCE >= amount for name, amount in bundle.items()):
            for name, amount in bundle.items():
                node[name] = node.get(name, 0.0) - amount
            return True
    return False


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
    asha = ResumableASHA(config.encoders, steps, ledger) if config.encoders.scheduler == "asha" else None
    folder = config.folder / _TUNE
    shutil.rmtree(folder, ignore_errors=True)
    tuner = tune.Tuner(
        tune.with_resources(EncoderTrial, PlacementGroupFactory([{"CPU": config.driver_cpus}])),
        tune_config=TuneConfig(
            search_alg=PlanSearcher(plan, ledger, at_once, say),
            scheduler=asha,
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
