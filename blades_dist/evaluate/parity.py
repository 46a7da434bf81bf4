"""The audit that comes before any table: can the two sides be told apart by their containers alone?

A detector evaluated on JPEG photographs and PNG fakes, or on fakes of one fixed size, may have learned just that. So a
small classifier is given nothing but what the shards record of the source file, and its cross-validated AUC tells how
much of a detector's result a container could explain.
"""

import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from scipy.stats import rankdata
from sklearn.ensemble import GradientBoostingClassifier

from blades_dist.data.records import CONTAINER_COLUMNS, read_manifest, with_container
from blades_dist.evaluate.bootstrap import bootstrap_metrics
from blades_dist.evaluate.ranking import auc
from blades_dist.evaluate.rates import Estimate

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
    (found,) = bootstrap_metrics([auc], scores[labels == 0], [scores[labels == 1]], resamples, seed)
    return found.estimate(0, confidence)


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


LEAK = 0.6  # AUC of the container above which a test set leaks
SMALLEST = 20  # images a side, below which a cross-validated classifier says nothing
ALL = "all generators"
NOT_AUDITED = (
    "metadata, thumbnails, the order of a file's segments and its size in bytes",
    "where in its picture the face lies (its size and the picture's are audited)",
    "traces in the pixels of containers the files were in before",
    "what is shown: people, poses and backgrounds may differ between the sides",
)
SHOWN = 12  # categories of one fact that a distribution names; the rest are counted together
_QUANTILES = (0.0, 0.05, 0.5, 0.95, 1.0)
_OPTIONAL = tuple(item.name for item in CONTAINER_COLUMNS)
_WORDS = {
    "jpeg_tables": "quantisation tables",
    "chroma": "chroma subsampling",
    "bit_depth": "bit depth",
    "pixel_mode": "pixel mode",
    "icc_profile": "colour profiles",
    "source_width": "width of the source picture",
    "source_height": "height of the source picture",
}


@dataclass(frozen=True)
class Distribution:
    """Containers of one side: codec counts, (minimum, 5%, median, 95%, maximum) of each number, None if absent, and
    for each other categorical fact that is recorded how many images have which value (the most frequent ``SHOWN``)."""

    n: int
    codecs: dict[str, int]
    quantiles: dict[str, tuple[float, ...] | None]
    counts: dict[str, dict[str, int]] = field(default_factory=dict)


@dataclass(frozen=True)
class Audit:
    """``container_auc`` by generator and for all together; one that could not be audited is missing there.

    An AUC below 0.5 is chance as much as one of 0.5: the classifier was fitted on other folds. ``unrecorded`` are
    columns left out, by the same names, since some image of either side has no value there.
    """

    real: Distribution
    generators: dict[str, Distribution]
    container_auc: dict[str, Estimate]
    unrecorded: dict[str, tuple[str, ...]] = field(default_factory=dict)

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
        return any(self.container_auc[name].value > chance(self.container_auc[name]) for name in self.leaking)

    @property
    def not_audited(self) -> tuple[str, ...]:
        """``NOT_AUDITED``, and what these shards do not record."""
        missing = self._missing()
        return NOT_AUDITED + ((f"not recorded in these shards: {missing}",) if missing else ())

    def verdict(self) -> str:
        """A few sentences for people, with n and intervals."""
        missing = self._missing()
        gap = (
            f" Not recorded by both sides, hence not audited: {missing}; ingest again to record it." if missing else ""
        )
        if self.leaking:
            found = sorted((self.container_auc[name].value, name) for name in self.leaking)[-1][1]
            words = (
                f"container facts alone (codec, compression, size) tell photographs from {', '.join(self.leaking)} "
                f"(at most AUC {_words(self.container_auc[found])} for {found}; above {LEAK} counts as a leak). "
            )
            if self.certain:
                return (
                    f"THE TEST SET LEAKS THROUGH ITS CONTAINER: {words}"
                    f"A detector may score well below without having looked at a face.{gap}"
                )
            return (
                f"THE TEST SET MAY LEAK THROUGH ITS CONTAINER: {words}"
                f"With so few images equal containers reach this by chance at times; more images would settle it.{gap}"
            )
        if not self.container_auc:
            return f"Container audit: not possible with fewer than {SMALLEST} images a side; nothing is known of leaks."
        worst = max(self.container_auc, key=lambda name: self.container_auc[name].value)
        rest = f" Too few images to audit: {', '.join(self.too_small)}." if self.too_small else ""
        return (
            f"Container audit passed: container facts alone (codec, compression, size) tell the sides apart with AUC "
            f"{_words(self.container_auc[worst])} at most ({worst}); above {LEAK} would count as a leak.{rest}{gap}"
        )

    def _missing(self) -> str:
        names = {name for columns in self.unrecorded.values() for name in columns}
        return ", ".join(_WORDS[name] for name in _OPTIONAL if name in names)


def audit(
    real: pa.Table,
    generated: Mapping[str, pa.Table],
    resamples: int = 2000,
    confidence: float = 0.95,
    seed: int = 0,
) -> Audit:
    """Compares tables of ``read_containers``: photographs against each generator, and against all at once.

    Columns of ``COLUMNS`` that version 1 of the shards did not have may be missing or null. Without a column ``photo``
    every row counts as a photograph of its own.
    """
    real, sides = _complete(real), {name: _complete(table) for name, table in generated.items()}
    distributions = {name: distribution(table) for name, table in sides.items()}
    if len(sides) > 1:
        sides[ALL] = pa.concat_tables(list(sides.values()))
    sides = {name: table for name, table in sides.items() if min(len(real), len(table)) >= SMALLEST}
    unrecorded = {name: _unrecorded(real, table) for name, table in sides.items()}
    found = {
        name: container_auc(real, table, unrecorded[name], resamples, confidence, seed) for name, table in sides.items()
    }
    return Audit(distribution(real), distributions, found, {name: gone for name, gone in unrecorded.items() if gone})


def audit_sets(
    real: Path,
    generated: Path,
    split: str,
    limit: int | None = None,
    resamples: int = 2000,
    confidence: float = 0.95,
    seed: int = 0,
) -> Audit:
    """``audit`` of a split of two shard folders, the generated side by source; ``limit`` takes the first faces of each.

    Raises:
        FileNotFoundError, ValueError: as ``read_containers``.
    """
    photographs, faces = (read_containers(folder, split).slice(0, limit) for folder in (real, generated))
    sources = np.array(faces["source"].to_pylist())
    by_source = {str(name): faces.filter(sources == name) for name in sorted(set(sources))}
    return audit(photographs, by_source, resamples, confidence, seed)


def read_containers(folder: Path, split: str) -> pa.Table:
    """Source, photo and ``COLUMNS`` of every face of a split, without reading any image; null where not recorded.

    Raises:
        FileNotFoundError, ValueError: no readable manifest, or no row in that split.
    """
    tables = []
    for shard in read_manifest(folder).split(split):
        with pq.ParquetFile(folder / shard.name) as file:
            there = [name for name in ("source", "photo", *COLUMNS) if name in file.schema_arrow.names]
            table = file.read(columns=there)
        tables.append(with_container(table).select(["source", "photo", *COLUMNS]))
    return pa.concat_tables(tables)


def distribution(table: pa.Table) -> Distribution:
    """What is shown side by side of one side's containers."""
    table = _complete(table)
    return Distribution(
        n=len(table),
        codecs=_counts(table, "codec"),
        quantiles={name: _quantiles(numbers_of(table, name)) for name in NUMBERS},
        counts={
            name: _shortened(_counts(table, name))
            for name in CATEGORIES
            if name != "codec" and table[name].null_count < len(table)
        },
    )


# Tables --------------------------------------------------------------------------------------------------------------


def _complete(table: pa.Table) -> pa.Table:
    """``photo`` and ``COLUMNS``, in that order."""
    table = with_container(table)
    if "photo" not in table.column_names:
        table = table.append_column("photo", pa.array([str(i) for i in range(len(table))]))
    return table.select(["photo", *COLUMNS])


def _unrecorded(real: pa.Table, generated: pa.Table) -> tuple[str, ...]:
    return tuple(name for name in _OPTIONAL if real[name].null_count or generated[name].null_count)


def _quantiles(values: np.ndarray) -> tuple[float, ...] | None:
    known = values[~np.isnan(values)]
    return tuple(float(q) for q in np.quantile(known, _QUANTILES)) if len(known) else None


def _counts(table: pa.Table, name: str) -> dict[str, int]:
    """Images by value in words, the most frequent first."""
    words = {None: "not recorded", True: "yes", False: "no"} if name == "icc_profile" else {None: "not recorded"}
    counts = Counter(words.get(value, str(value)) for value in table[name].to_pylist())
    return dict(sorted(counts.items(), key=lambda item: (-item[1], item[0])))


def _shortened(counts: dict[str, int]) -> dict[str, int]:
    items = list(counts.items())
    if len(items) <= SHOWN:
        return counts
    rest = items[SHOWN - 1 :]
    return dict(items[: SHOWN - 1]) | {f"{len(rest)} others": sum(count for _, count in rest)}


def _words(estimate: Estimate) -> str:
    return (
        f"{estimate.value:.2f} [{estimate.low:.2f}, {estimate.high:.2f}] "
        f"(n = {estimate.n_real} photographs, {estimate.n_generated} generated)"
    )
