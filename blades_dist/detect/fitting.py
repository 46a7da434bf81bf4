"""A head of the configured kind from features of real faces, and of AI faces where it needs them, on Ray's cores."""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cache
from typing import Any

import numpy as np
import ray

from blades_dist.config import FitConfig, MixtureConfig
from blades_dist.detect.features import FeatureSet
from blades_dist.detect.heads import fit_head
from blades_dist.detect.heads.base import FitData, FitOptions, Fitted, Item, Result
from blades_dist.detect.heads.mixture import MixtureHead
from blades_dist.progress import Say


def fit_real(config: FitConfig, real: FeatureSet, say: Say) -> Fitted:
    """A head that sees real faces only.

    Raises:
        ValueError: too few faces for what is asked, or features that are not finite.
    """
    return fit_head(config, FitData(real.features), _options(config, say))


def likelihood_of(config: FitConfig, real: FeatureSet, say: Say) -> Callable[[], np.ndarray]:
    """What gives the (n,) log-likelihoods of real faces under the configured mixture, which is fitted when the first
    head asks for them.

    Raises:
        ValueError: when it is called, as ``fit_real``.
    """

    @cache
    def likelihood() -> np.ndarray:
        section = config.section(MixtureHead.kind)
        assert isinstance(section, MixtureConfig)
        return MixtureHead.fit(FitData(real.features), section, _options(config, say)).head.score(real.features)

    return likelihood


def fit_with_generated(
    config: FitConfig,
    real: FeatureSet,
    likelihood: Callable[[], np.ndarray],
    generated: FeatureSet,
    digest: str,
    say: Say,
) -> Fitted:
    """A head that sees real faces and AI faces; ``digest`` is that of the latter's manifest.

    Raises:
        ValueError: as ``fit_real``.
    """
    data = FitData(real.features, generated.features, generated.sources, likelihood)
    found = fit_head(config, data, _options(config, say))
    return replace(found, generated=dict(Counter(generated.sources)), generated_digest=digest)


def chosen_generators(generated: FeatureSet, names: list[str] | None, where: str) -> FeatureSet:
    """The faces of those generators; all of them for None.

    Raises:
        ValueError: a name that no face has.
    """
    if names is None:
        return generated
    unknown = sorted(set(names) - set(generated.sources))
    if unknown:
        known = ", ".join(sorted(set(generated.sources)))
        raise ValueError(f"generators: {', '.join(unknown)} not in {where}; it has: {known}")
    return generated.where(np.isin(generated.sources, names))


def in_ray_tasks(
    fit: Callable[[np.ndarray, Item, int | None], Result],
    features: np.ndarray,
    items: Sequence[Item],
    threads: int | None,
    done: Callable[[Result], None],
) -> list[Result]:
    """A ``Runner`` that begins the fits in the order of ``items``, side by side; each task has one core and computes
    in one thread, whatever ``threads`` says, and all read one copy of the features.

    Needs a connection to Ray.

    Raises:
        ValueError: as ``fit``; what had not begun then is not begun any more.
    """
    shared = ray.put(np.ascontiguousarray(features, dtype=np.float32))
    tasks = [_fit.remote(fit, shared, item) for item in items]
    found: dict[Any, Result] = {}
    waiting = list(tasks)
    try:
        while waiting:
            (ended,), waiting = ray.wait(waiting, num_returns=1)
            found[ended] = ray.get(ended)
            done(found[ended])
    except ray.exceptions.RayTaskError as error:
        for task in waiting:
            ray.cancel(task)
        if isinstance(error.cause, ValueError):
            raise ValueError(str(error.cause)) from None
        raise
    return [found[task] for task in tasks]


@ray.remote(num_cpus=1)
def _fit(fit: Callable[[np.ndarray, Item, int | None], Result], features: np.ndarray, item: Item) -> Result:
    return fit(features, item, 1)


def _options(config: FitConfig, say: Say) -> FitOptions:
    return FitOptions(config.seed, run=in_ray_tasks, say=say)
