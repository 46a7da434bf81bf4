"""The audit that comes before any table: can the two sides be told apart by their containers alone?

A detector evaluated on JPEG photographs and PNG fakes, or on fakes of one fixed size, may have learned just that. So a
small classifier is given nothing but what the shards record of the source file, and its cross-validated AUC tells how
much of a detector's result a container could explain.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from scipy.stats import rankdata
from sklearn.ensemble import GradientBoostingClassifier
from sklearn.model_selection import StratifiedKFold

from blades_dist.data.records import read_manifest
from blades_dist.evaluate.metrics import Estimate, auc, rank

LEAK = 0.6  # AUC of the container above which a test set leaks
COLUMNS = ("codec", "jpeg_quality", "width", "height")
SMALLEST = 20  # images a side, below which a cross-validated classifier says nothing
ALL = "all generators"
NOT_AUDITED = (
    "the quantisation tables themselves (only the quality estimated from them), chroma subsampling, bit depth, colour "
    "profiles and metadata",
    "the size of the source picture and how the face is framed in it (width and height are those of the face crop)",
    "traces in the pixels of containers the files were in before",
    "what is shown: people, poses and backgrounds may differ between the sides",
)
LARGEST = 5000  # images a side that the classifier is given at most; more would cost time and change little
_QUANTILES = (0.0, 0.05, 0.5, 0.95, 1.0)


@dataclass(frozen=True)
class Distribution:
    """Containers of one side: codec counts, and (minimum, 5%, median, 95%, maximum) of each number, None if absent."""

    n: int
    codecs: dict[str, int]
    quantiles: dict[str, tuple[float, ...] | None]
    counts: dict[str, dict[str, int]] = field(default_factory=dict)  # other categorical facts: images by value


@dataclass(frozen=True)
class Audit:
    """``container_auc`` by generator and for all together; one that could not be audited is missing there.

    An AUC below 0.5 is chance as much as one of 0.5: the classifier was fitted on other folds.
    """

    real: Distribution
    generators: dict[str, Distribution]
    container_auc: dict[str, Estimate]

    @property
    def leaking(self) -> list[str]:
        """Names of ``container_auc`` above ``LEAK``."""
        return [name for name, estimate in self.container_auc.items() if estimate.value > LEAK]

    @property
    def too_small(self) -> list[str]:
        """Generators with too few images to audit."""
        return [name for name in self.generators if name not in self.container_auc]

    @property
    def certain(self) -> bool:
        """Whether some leak is beyond what equal containers reach by chance."""
        return any(self.container_auc[name].value > _chance(self.container_auc[name]) for name in self.leaking)

    def verdict(self) -> str:
        """A few sentences for people, with n and intervals."""
        if self.leaking:
            found = sorted((self.container_auc[name].value, name) for name in self.leaking)[-1][1]
            words = (
                f"codec, quality and size alone tell photographs from {', '.join(self.leaking)} (at most AUC "
                f"{_words(self.container_auc[found])} for {found}; above {LEAK} counts as a leak). "
            )
            if self.certain:
                return (
                    f"THE TEST SET LEAKS THROUGH ITS CONTAINER: {words}"
                    "A detector may score well below without having looked at a face."
                )
            return (
                f"THE TEST SET MAY LEAK THROUGH ITS CONTAINER: {words}"
                "With so few images equal containers reach this by chance at times; more images would settle it."
            )
        if not self.container_auc:
            return f"Container audit: not possible with fewer than {SMALLEST} images a side; nothing is known of leaks."
        worst = max(self.container_auc, key=lambda name: self.container_auc[name].value)
        rest = f" Too few images to audit: {', '.join(self.too_small)}." if self.too_small else ""
        return (
            f"Container audit passed: codec, quality and size tell the sides apart with AUC "
            f"{_words(self.container_auc[worst])} at most ({worst}); above {LEAK} would count as a leak.{rest}"
        )


def audit(
    real: pa.Table,
    generated: Mapping[str, pa.Table],
    resamples: int = 2000,
    confidence: float = 0.95,
    seed: int = 0,
) -> Audit:
    """Compares tables with the columns ``COLUMNS``: photographs against each generator, and against all at once."""
    sides = dict(generated)
    if len(sides) > 1:
        sides[ALL] = pa.concat_tables([table.select(COLUMNS) for table in sides.values()])
    found = {
        name: _container_auc(real, table, resamples, confidence, seed)
        for name, table in sides.items()
        if min(len(real), len(table)) >= SMALLEST
    }
    return Audit(distribution(real), {name: distribution(table) for name, table in generated.items()}, found)


def read_containers(folder: Path, split: str) -> pa.Table:
    """Source, codec, quality and size (pixels) of every face of a split, without reading any image.

    Raises:
        FileNotFoundError, ValueError: no readable manifest, or no row in that split.
    """
    shards = read_manifest(folder).split(split)
    tables = [pq.read_table(folder / shard.name, columns=["source", *COLUMNS]) for shard in shards]
    return pa.concat_tables(tables)


def distribution(table: pa.Table) -> Distribution:
    """What is shown side by side of one side's containers."""
    codecs = table.column("codec").value_counts().to_pylist()
    return Distribution(
        n=len(table),
        codecs={item["values"]: item["counts"] for item in sorted(codecs, key=lambda item: -item["counts"])},
        quantiles={name: _quantiles(_numbers(table, name)) for name in COLUMNS[1:]},
    )


def _container_auc(real: pa.Table, generated: pa.Table, resamples: int, confidence: float, seed: int) -> Estimate:
    """AUC at which boosted trees tell the sides apart, each image scored by a fit that did not see it."""
    rng = np.random.default_rng(seed)
    real, generated = _at_most(LARGEST, real, rng), _at_most(LARGEST, generated, rng)
    features = _features(pa.concat_tables([real.select(COLUMNS), generated.select(COLUMNS)]))
    labels = np.r_[np.zeros(len(real), int), np.ones(len(generated), int)]
    suspicion = np.zeros(len(labels))
    for train, test in StratifiedKFold(5, shuffle=True, random_state=seed).split(features, labels):
        model = GradientBoostingClassifier(n_estimators=60, max_depth=3, min_samples_leaf=10, random_state=seed)
        probability = model.fit(features[train], labels[train]).predict_proba(features[test])[:, 1]
        # Folds differ in their base rates, so probabilities are comparable within a fold only: ranks are compared.
        suspicion[test] = (rankdata(probability.round(9)) - 0.5) / len(test)
    scores = -suspicion
    return rank([auc], scores[labels == 0], [scores[labels == 1]], resamples, seed)[0].estimate(0, confidence)


def _at_most(n: int, table: pa.Table, rng: np.random.Generator) -> pa.Table:
    return table if len(table) <= n else table.take(np.sort(rng.permutation(len(table))[:n]))


def _features(table: pa.Table) -> np.ndarray:
    """(n, features) float: one column a codec, quality (-1 = none), width, height, aspect ratio."""
    codecs = np.array(table.column("codec").to_pylist())
    columns = [(codecs == name).astype(float) for name in sorted(set(codecs))]
    quality, width, height = (_numbers(table, name) for name in COLUMNS[1:])
    return np.stack([*columns, np.nan_to_num(quality, nan=-1), width, height, width / height], axis=1)


def _numbers(table: pa.Table, name: str) -> np.ndarray:
    return table.column(name).cast(pa.float64()).to_numpy().astype(float)


def _quantiles(values: np.ndarray) -> tuple[float, ...] | None:
    known = values[~np.isnan(values)]
    return tuple(float(q) for q in np.quantile(known, _QUANTILES)) if len(known) else None


def _chance(estimate: Estimate) -> float:
    """An AUC that containers without any difference hardly ever reach, three standard deviations above 0.5.

    1.4 times the deviation of a fixed classifier's AUC (Mann-Whitney, no ties): folds are fitted on each other's
    images, which by simulation on containers like ours adds that much.
    """
    n, m = min(estimate.n_real, LARGEST), min(estimate.n_generated, LARGEST)
    return 0.5 + 3 * 1.4 * math.sqrt((n + m + 1) / (12 * n * m))


def _words(estimate: Estimate) -> str:
    return (
        f"{estimate.value:.2f} [{estimate.low:.2f}, {estimate.high:.2f}] "
        f"(n = {estimate.n_real} photographs, {estimate.n_generated} generated)"
    )
