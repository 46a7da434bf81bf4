"""How well boosted trees tell two sides apart by what is recorded of their containers, and by nothing else."""

import math
from collections import Counter

import numpy as np
import pyarrow as pa
from scipy.stats import rankdata
from sklearn.ensemble import GradientBoostingClassifier

from blades_dist.evaluate.metrics import Estimate, auc, rank

NUMBERS = ("jpeg_quality", "width", "height", "source_width", "source_height")
CATEGORIES = ("codec", "jpeg_tables", "chroma", "bit_depth", "pixel_mode", "icc_profile")
COLUMNS = (*CATEGORIES, *NUMBERS)
LARGEST = 5000  # images a side that the classifier is given at most; more would cost time and change little
FOLDS = 5
# A category of fewer images, of both sides, cannot be learned but only memorised: such are one category.
_RARE = 10


def container_auc(
    real: pa.Table, generated: pa.Table, without: tuple[str, ...], resamples: int, confidence: float, seed: int
) -> Estimate:
    """AUC at which boosted trees tell the sides apart, each image scored by a fit that saw neither it nor another face
    of its photograph."""
    rng = np.random.default_rng(seed)
    real, generated = _at_most(LARGEST, real, rng), _at_most(LARGEST, generated, rng)
    features = _features(pa.concat_tables([real, generated]), without)
    labels = np.r_[np.zeros(len(real), int), np.ones(len(generated), int)]
    folds = np.r_[folds_of(real, rng), folds_of(generated, rng)]
    suspicion = np.zeros(len(labels))
    for fold in range(FOLDS):
        test, train = folds == fold, folds != fold
        model = GradientBoostingClassifier(n_estimators=60, max_depth=3, min_samples_leaf=10, random_state=seed)
        if len(set(labels[train])) < 2 or not test.any():  # faces of one photograph only: nothing was learned
            suspicion[test] = 0.5
            continue
        probability = model.fit(features[train], labels[train]).predict_proba(features[test])[:, 1]
        # Folds differ in their base rates, so probabilities are comparable within a fold only: ranks are compared.
        suspicion[test] = (rankdata(probability.round(9)) - 0.5) / test.sum()
    scores = -suspicion
    return rank([auc], scores[labels == 0], [scores[labels == 1]], resamples, seed)[0].estimate(0, confidence)


def folds_of(table: pa.Table, rng: np.random.Generator) -> np.ndarray:
    """(n,) fold of every row: photographs in random order are cut into stretches of about equally many faces."""
    _, photo = np.unique(np.array(table["photo"].to_pylist()), return_inverse=True)
    order = rng.permutation(photo.max() + 1)
    faces = np.bincount(photo)[order]
    middle = np.cumsum(faces) - faces / 2
    fold = np.empty(len(order), int)
    fold[order] = np.minimum(middle * FOLDS // len(table), FOLDS - 1)
    return fold[photo]


def _features(table: pa.Table, without: tuple[str, ...]) -> np.ndarray:
    """(n, features) float: categories as ranks of their frequency, numbers (-1 = none), and ratios of sizes.

    Nothing here depends on which side a row is of. Two cuts of a tree take any one category out of the ranks, so that
    one column a fact is enough.
    """
    columns = [_ranked(table[name].to_pylist()) for name in CATEGORIES if name not in without]
    numbers = {name: np.nan_to_num(numbers_of(table, name), nan=-1) for name in NUMBERS if name not in without}
    columns += [*numbers.values(), numbers["width"] / numbers["height"]]
    if "source_width" in numbers and "source_height" in numbers:
        columns += [numbers["source_width"] / numbers["source_height"], numbers["width"] / numbers["source_width"]]
    return np.stack(columns, axis=1)


def _ranked(values: list[object]) -> np.ndarray:
    """(n,) rank of each value by how often it is there, 0 the most frequent; rare ones share the last rank."""
    counts = Counter(values)
    frequent = [value for value in counts if counts[value] >= _RARE]
    ranks = {value: i for i, value in enumerate(sorted(frequent, key=lambda value: (-counts[value], str(value))))}
    return np.array([ranks.get(value, len(ranks)) for value in values], float)


def chance(estimate: Estimate) -> float:
    """An AUC that containers without any difference hardly ever reach, three standard deviations above 0.5.

    1.4 times the deviation of a fixed classifier's AUC (Mann-Whitney, no ties): folds are fitted on each other's
    images, which by simulation on containers like ours adds that much.
    """
    n, m = min(estimate.n_real, LARGEST), min(estimate.n_generated, LARGEST)
    return 0.5 + 3 * 1.4 * math.sqrt((n + m + 1) / (12 * n * m))


def _at_most(n: int, table: pa.Table, rng: np.random.Generator) -> pa.Table:
    return table if len(table) <= n else table.take(np.sort(rng.permutation(len(table))[:n]))


def numbers_of(table: pa.Table, name: str) -> np.ndarray:
    """(n,) float64 of a numeric column, NaN where it has no value."""
    return table.column(name).cast(pa.float64()).to_numpy().astype(float)
