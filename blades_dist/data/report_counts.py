"""What the rows of a shard set hold, counted a row group at a time: memory does not grow with the set."""

from collections import Counter
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from blades_dist.data.records import Manifest, label_column
from blades_dist.tags import EXIF_TAGS, Quantity
from blades_dist.tasks import ORDINAL_TAGS, TAGS, vocabulary

# A histogram has bins over the whole range that ingest takes for plausible.
RANGES = {tag.name: (tag.values.low, tag.values.high) for tag in EXIF_TAGS if isinstance(tag.values, Quantity)}
SIDES = (16.0, 16384.0)  # of crops, pixels
_BINS_A_DECADE = 12
_COLUMNS = ["source", "codec", "jpeg_quality", "width", *(label_column(tag) for tag in TAGS)]
_COLUMNS += [f"exif_{tag}" for tag in ORDINAL_TAGS]


class Histogram:
    """Counts of values in fixed bins, and their extremes; what lies beyond the bins is in the outermost."""

    def __init__(self, edges: np.ndarray) -> None:
        self.edges, self.counts = edges, np.zeros(len(edges) - 1, np.int64)
        self.low, self.high = np.inf, -np.inf

    @property
    def n(self) -> int:
        return int(self.counts.sum())

    def add(self, values: np.ndarray) -> None:
        """Counts finite values, (N,) float."""
        values = values[np.isfinite(values)]
        if len(values):
            self.low, self.high = min(self.low, float(values.min())), max(self.high, float(values.max()))
            self.counts += np.histogram(np.clip(values, self.edges[0], self.edges[-1]), self.edges)[0]

    def shown(self) -> tuple[np.ndarray, np.ndarray]:
        """Edges and counts from the first to the last bin that is not empty."""
        used = np.flatnonzero(self.counts)
        first, last = (int(used[0]), int(used[-1])) if len(used) else (0, len(self.counts) - 1)
        return self.edges[first : last + 2], self.counts[first : last + 1]


class Counts:
    """``labels[tag][split]`` (values + 1,) counts a tag's values and, last, its absence."""

    def __init__(self) -> None:
        self.labels: dict[str, dict[str, np.ndarray]] = {tag: {} for tag in TAGS}
        self.raw = {tag: _log_histogram(*RANGES[tag]) for tag in ORDINAL_TAGS}
        self.sides = _log_histogram(*SIDES)
        self.qualities = Histogram(np.arange(-0.5, 101.5))
        self.codecs: Counter[str] = Counter()
        self.sources: dict[str, Counter[str]] = {}
        """By source, how many rows each split has."""

    def add(self, table: pa.Table, split: str) -> None:
        """Counts a table with ``_COLUMNS``, all of one split."""
        for tag in TAGS:
            size = len(vocabulary(tag)) + 1
            # -1, absent, goes to the end.
            found = np.bincount(table[label_column(tag)].to_numpy() % size, minlength=size)
            self.labels[tag][split] = self.labels[tag].get(split, 0) + found
        for tag in ORDINAL_TAGS:
            self.raw[tag].add(_numbers(table[f"exif_{tag}"]))
        self.sides.add(_numbers(table["width"]))
        self.qualities.add(_numbers(table["jpeg_quality"]))
        for source, count in _tally(table["source"]).items():
            self.sources.setdefault(source, Counter())[split] += count
        self.codecs.update(_tally(table["codec"]))


def count(folder: Path, manifest: Manifest) -> Counts:
    """Counts every row of a set; reads no image."""
    counts = Counts()
    for shard in manifest.shards:
        with pq.ParquetFile(folder / shard.name) as file:
            for batch in file.iter_batches(8192, columns=_COLUMNS, use_threads=False):
                counts.add(pa.Table.from_batches([batch]), shard.split)
    return counts


def _log_histogram(low: float, high: float) -> Histogram:
    bins = int(np.ceil(_BINS_A_DECADE * np.log10(high / low)))
    return Histogram(low * 10.0 ** (np.arange(bins + 1) / _BINS_A_DECADE))


def _numbers(column: pa.ChunkedArray) -> np.ndarray:
    """A column as float64, null as NaN."""
    return np.asarray(column.cast(pa.float64()).to_numpy(), float)


def _tally(column: pa.ChunkedArray) -> dict[str, int]:
    return {item["values"]: item["counts"] for item in pc.value_counts(column).to_pylist()}
