"""How many encoder runs fit into the cluster at the same time, so that none ever waits for what another holds."""

from collections.abc import Mapping, Sequence

import ray

from blades_dist.settings import ConfigError
from blades_dist.tuning.config import SweepConfig

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
