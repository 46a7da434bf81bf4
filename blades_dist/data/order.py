"""The order of rows in an epoch, and which of them a worker reads. Pure NumPy: no Ray, no files.

The order is a function of (seed, epoch, row groups of the split) alone. Row groups are permuted, then the rows of
every ``window`` successive groups are shuffled together. The epochs' orders, one after another, make one sequence
without end, cut into global batches: of ``N`` workers with ``B`` rows each, worker ``r`` takes the ``r``-th ``B`` rows
of the next ``N*B``. A global batch may hold the last rows of one epoch and the first of the next, so that every epoch
consumes each row exactly once whatever ``N`` and ``B`` are, and also when they change within it.

Permutations sort hashed keys instead of using a library's generator, so that a run resumed under another NumPy
version goes on in the same order.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from blades_dist.data.records import Manifest


@dataclass(frozen=True)
class Position:
    """Where a stream stands: all epochs before ``epoch`` are consumed, and ``rows`` of its order, by all workers
    together. All rows of one epoch and none of the next are the same place."""

    epoch: int = 0
    rows: int = 0

    def __post_init__(self) -> None:
        if self.epoch < 0 or self.rows < 0:
            raise ValueError(f"a position cannot be negative: {self}")


@dataclass(frozen=True)
class Chunk:
    """Rows of ``batches`` successive batches of one worker: row ``row[i]`` of row group ``group[i]`` of the split, in
    epoch ``epoch[i]``; (rows,) int64 each.

    ``first`` is the position before the first of them.
    """

    first: Position
    batches: int
    epoch: np.ndarray
    group: np.ndarray
    row: np.ndarray


class EpochOrder:
    """Order of the rows of one epoch; ``group_rows`` are the row counts of the split's groups, in stored order.

    Any stretch of it costs time and memory for the windows it touches only.
    """

    def __init__(self, group_rows: Sequence[int], window: int, seed: int, epoch: int):
        if window < 1 or seed < 0:
            raise ValueError(f"window >= 1 and seed >= 0, got {window} and {seed}")
        sizes = np.asarray(group_rows, np.int64)
        self.epoch = epoch
        self._salt = (seed, epoch)
        self._window = window
        self._groups = _permutation(len(sizes), *self._salt, 0)
        self._sizes = sizes[self._groups]
        ends = np.cumsum(self._sizes)
        self._starts = np.concatenate([[0], ends[window - 1 :: window], ends[-1:]]).astype(np.int64)
        self.rows = int(sizes.sum())

    def stretch(self, start: int, stop: int) -> tuple[np.ndarray, np.ndarray]:
        """Group and row within it, (stop - start,) int64 each, of places ``start`` to ``stop`` of the order."""
        if not 0 <= start <= stop <= self.rows:
            raise ValueError(f"rows [{start}, {stop}) of an epoch of {self.rows}")
        groups, rows = [np.empty(0, np.int64)], [np.empty(0, np.int64)]
        window = int(np.searchsorted(self._starts, start, side="right")) - 1
        while start < stop:
            begin, end = int(self._starts[window]), int(self._starts[window + 1])
            group, row = self._shuffled(window)
            part = slice(start - begin, min(stop, end) - begin)
            groups.append(group[part])
            rows.append(row[part])
            start, window = min(stop, end), window + 1
        return np.concatenate(groups), np.concatenate(rows)

    def _shuffled(self, window: int) -> tuple[np.ndarray, np.ndarray]:
        part = slice(window * self._window, (window + 1) * self._window)
        sizes = self._sizes[part]
        group = np.repeat(self._groups[part], sizes)
        row = np.concatenate([np.arange(size) for size in sizes])
        shuffle = _permutation(len(group), *self._salt, 1 + window)
        return group[shuffle], row[shuffle]


def global_batches(manifest: Manifest, split: str, global_batch: int, epochs: int = 1) -> int:
    """Whole global batches in ``epochs`` epochs of a split.

    Raises:
        ValueError: the split has fewer rows than one global batch, which would then hold a row several times.
    """
    rows = sum(shard.rows for shard in manifest.shards if shard.split == split)
    if rows < global_batch:
        raise ValueError(
            f"split {split!r} has {rows} rows, fewer than one global batch of {global_batch} "
            f"(batch size x workers): use a smaller batch, fewer workers or more photographs"
        )
    return epochs * rows // global_batch


def chunks(
    group_rows: Sequence[int],
    window: int,
    seed: int,
    start: Position,
    *,
    batch_size: int,
    rank: int,
    world_size: int,
    batches_per_chunk: int,
) -> Iterator[Chunk]:
    """One worker's share from ``start`` on, without end, in order.

    Raises:
        ValueError: rank or sizes out of range, a position beyond its epoch, or an epoch without a whole batch.
    """
    step = batch_size * world_size
    total = int(sum(group_rows))
    if batch_size < 1 or not 0 <= rank < world_size or total < step:
        raise ValueError(f"batch size {batch_size}, rank {rank} of {world_size}: not possible with {total} rows")
    if start.rows > total:
        raise ValueError(f"{start} lies beyond its epoch of {total} rows: was it taken on other shards?")
    mine = np.arange(batches_per_chunk * step).reshape(-1, world_size, batch_size)[:, rank].ravel()
    position = after(start, 0, total)
    order = EpochOrder(group_rows, window, seed, position.epoch)
    while True:
        first, missing = position, batches_per_chunk * step
        parts: list[np.ndarray] = []
        while missing:
            if order.epoch != position.epoch:
                order = EpochOrder(group_rows, window, seed, position.epoch)
            taken = min(missing, total - position.rows)
            group, row = order.stretch(position.rows, position.rows + taken)
            parts.append(np.stack([np.full(taken, order.epoch), group, row]))
            position, missing = after(position, taken, total), missing - taken
        epochs, groups, rows = np.concatenate(parts, axis=1)[:, mine]
        yield Chunk(first, batches_per_chunk, epochs, groups, rows)


def after(position: Position, rows: int, total: int) -> Position:
    """The position ``rows`` rows on, of epochs of ``total``."""
    epochs, rest = divmod(position.rows + rows, total)
    return Position(position.epoch + epochs, rest)


def _permutation(count: int, *salt: int) -> np.ndarray:
    return np.argsort(_keys(count, *salt), kind="stable")


def _keys(count: int, *salt: int) -> np.ndarray:
    """``count`` hashed 64-bit keys of (salt, index), by the finaliser of SplitMix64."""
    state = np.zeros(1, np.uint64)
    for part in salt:
        state = _mix(state + np.uint64(part % 2**64))
    return _mix(state + np.arange(count, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15))


def _mix(value: np.ndarray) -> np.ndarray:
    value = value + np.uint64(0x9E3779B97F4A7C15)
    value = (value ^ (value >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    value = (value ^ (value >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return value ^ (value >> np.uint64(31))
