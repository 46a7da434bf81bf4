"""Mixtures of several sizes, side by side in Ray tasks."""

from collections.abc import Callable, Sequence

import numpy as np
import ray

from blades_dist.config import OneClassConfig
from blades_dist.detect.one_class import MixtureFit, fit_mixture


def fit_sizes(
    features: np.ndarray, sizes: Sequence[int], config: OneClassConfig, seed: int, say: Callable[[str], None] = print
) -> list[MixtureFit]:
    """One fit a size, in the order of ``sizes``; each task has one core, and all read one copy of the features.

    Needs a connection to Ray.

    Raises:
        ValueError: as ``fit_mixture``.
    """
    shared = ray.put(np.ascontiguousarray(features, dtype=np.float32))
    # Larger mixtures take longer: first come those that the others can fill the time beside.
    tasks = {_fit.remote(shared, config.model_dump(), seed, size): size for size in sorted(sizes, reverse=True)}
    found: dict[int, MixtureFit] = {}
    waiting = list(tasks)
    try:
        while waiting:
            (done,), waiting = ray.wait(waiting, num_returns=1)
            fit = ray.get(done)
            found[tasks[done]] = fit
            likelihood = f"{fit.held_out_log_likelihood:.4f} nats a held-out face"
            say(f"{fit.components} Gaussians: {likelihood}, BIC {fit.bic:.6g}, {fit.iterations} iterations")
    except ray.exceptions.RayTaskError as error:
        for task in waiting:
            ray.cancel(task)
        if isinstance(error.cause, ValueError):
            raise ValueError(str(error.cause)) from None
        raise
    return [found[size] for size in sizes]


@ray.remote(num_cpus=1)
def _fit(features: np.ndarray, config: dict[str, object], seed: int, components: int) -> MixtureFit:
    return fit_mixture(features, OneClassConfig.model_validate(config), seed, components, threads=1)
