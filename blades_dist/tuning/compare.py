"""The best that was found against the default configuration, on a split that no trial has seen."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from blades_dist.config import FitConfig
from blades_dist.detect.calibrate import calibrate
from blades_dist.detect.extract import Request, extract
from blades_dist.evaluate.bootstrap import BootstrapMetric, bootstrap_metrics, paired_difference, paired_difference_p
from blades_dist.evaluate.ranking import auc
from blades_dist.evaluate.rates import Estimate
from blades_dist.tuning.config import SweepConfig
from blades_dist.tuning.features import FIT, extraction, unseen
from blades_dist.tuning.objective import trial_head

CONFIDENCE = 0.95


@dataclass(frozen=True)
class Contestant:
    """Encoders, one a seed, with the detector that is fitted to each."""

    name: str
    encoders: list[Path]
    detector: FitConfig


@dataclass(frozen=True)
class Measured:
    """Means over seeds on the unseen split: AUC by generator and their mean, false- and true-positive rate."""

    name: str
    auc: dict[str, Estimate]
    mean: Estimate
    fpr: float
    nominal_fpr: float
    tpr: float
    by_seed: list[float]


@dataclass(frozen=True)
class Comparison:
    """``contestants`` with the default first; ``differences`` of each later one from it: mean AUC, and its p-value.

    ``same``: the best that was found is the default itself.
    """

    contestants: list[Measured]
    differences: list[tuple[Estimate, float]]
    photographs: int
    others: dict[str, int]
    generated: bool
    same: bool = False

    @property
    def beats(self) -> bool:
        """Whether the best that was found is better, at 95%."""
        return not self.same and self.differences[-1][0].low > 0

    def verdict(self) -> str:
        """One sentence on the last contestant, which is the best that was found."""
        if self.same:
            return "The best found is the default configuration itself: no trial scored higher on the validation split."
        found, p = self.differences[-1]
        interval = f"{found.value:+.3f} [{found.low:+.3f}, {found.high:+.3f}], p = {p:.2g}"
        what = "AI faces" if self.generated else "manipulated photographs (no AI face was given)"
        where = f"in mean AUC against {what} on the test split, which no trial saw"
        if self.beats:
            return f"The best found beats the default configuration {where}: {interval}."
        if found.high < 0:
            return f"The best found is worse than the default configuration {where}: {interval}."
        return f"The best found is not shown to beat the default configuration {where}: {interval}."

    def as_json(self) -> dict[str, Any]:
        return {**asdict(self), "verdict": self.verdict()}


def compare(config: SweepConfig, contestants: Sequence[Contestant]) -> Comparison:
    """Measures everyone on the same faces; intervals are of a bootstrap over faces that all of them share.

    Rates are at the threshold that the calibration split gives at the detector's own ``fpr``. Needs Ray.
    """
    measured, ranked, sizes, photographs = [], [], {}, 0
    for one in contestants:
        runs, rates = [], []
        for seed, encoder in enumerate(one.encoders):
            request = Request(encoder, config.pretrain.data.shards, FIT)
            (fit,) = extract([request], extraction(config), lambda _: None)
            head = trial_head(one.detector, fit.features, one.detector.seed + seed)
            real, others, calibration = unseen(encoder, config)
            photographs, sizes = len(real), {name: len(rows) for name, rows in others.items()}
            scores, scored = head.score(real), [head.score(rows) for rows in others.values()]
            runs.append(bootstrap_metrics((auc,), scores, scored, config.bootstrap, config.seed)[0])
            threshold = calibrate(head.score(calibration), one.detector.fpr).threshold()
            rates.append(((scores < threshold).mean(), np.mean([(own < threshold).mean() for own in scored])))
        mean = _mean(runs)
        fpr, tpr = np.mean(rates, axis=0)
        by_name = {name: mean.estimate(i, CONFIDENCE) for i, name in enumerate(sizes)}
        own = [float(run.values.mean()) for run in runs]
        measured.append(
            Measured(one.name, by_name, mean.mean(CONFIDENCE), float(fpr), one.detector.fpr, float(tpr), own)
        )
        ranked.append(mean)
    differences = [
        (paired_difference(other, ranked[0], CONFIDENCE), paired_difference_p(other, ranked[0])) for other in ranked[1:]
    ]
    first, last = contestants[0], contestants[-1]
    same = first.encoders == last.encoders and first.detector.model_dump() == last.detector.model_dump()
    return Comparison(measured, differences, photographs, sizes, config.generated is not None, same)


def _mean(runs: Sequence[BootstrapMetric]) -> BootstrapMetric:
    """Mean over seeds, resample by resample: every run rests on the same draws of faces."""
    values, replicates = (np.mean([getattr(run, name) for run in runs], axis=0) for name in ("values", "replicates"))
    return replace(runs[0], values=values, replicates=replicates)
