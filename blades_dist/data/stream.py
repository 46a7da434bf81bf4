"""Batches for the train workers: decoded and resized in Ray tasks, in an order that can be resumed anywhere."""

import logging
import math
import time
from collections import deque
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

import cv2
import numpy as np
import pyarrow as pa
import ray

from blades_dist.config import StreamConfig
from blades_dist.data.jitter import Jitter
from blades_dist.data.order import Chunk, Position, after, chunks, global_batches
from blades_dist.data.read import FaceBatch, read_rows
from blades_dist.data.records import LANDMARKS, read_manifest
from blades_dist.tasks import TAGS

ROWS_PER_TASK = 512  # a Ray task costs some ten milliseconds, and re-reads the window's row groups: not one a batch
TASKS_AHEAD = 2  # at least, where the buffer is too small for so many rows each
LOOK_SECONDS = 10.0  # between looks at what the cluster has: two calls to another process

_logger = logging.getLogger(__name__)


def stream(
    folder: Path,
    split: str,
    config: StreamConfig,
    *,
    batch_size: int,
    rank: int,
    world_size: int,
    seed: int,
    start: Position,
    jitter: float = 0.0,
) -> Iterator[tuple[FaceBatch, Position]]:
    """One worker's batches of a split, without end over epochs, each with the position **after** it.

    The order depends on (seed, epoch, manifest) only, and so does what ``jitter`` (see ``jitter.Jitter``; 0: nothing)
    makes of a row. A batch may hold rows of two epochs; see ``order``. Resuming skips what was consumed by arithmetic:
    row groups that hold nothing of the rest are not opened.

    Raises:
        FileNotFoundError: the folder holds no manifest.
        ValueError: the split has fewer rows than a global batch, or ``start`` lies beyond its epoch.
    """
    manifest = read_manifest(folder)
    global_batches(manifest, split, batch_size * world_size)
    shards = manifest.split(split)
    files = [(folder.resolve() / shard.name, group) for shard in shards for group in range(len(shard.row_groups))]
    sizes = [rows for shard in shards for rows in shard.row_groups]
    plan = chunks(
        sizes,
        config.window_groups,
        seed,
        start,
        batch_size=batch_size,
        rank=rank,
        world_size=world_size,
        batches_per_chunk=batches_per_task(config, batch_size),
    )
    # A wrong rank or position is told to the caller now, not to whoever asks for the first batch.
    plan = chain([next(plan)], plan)
    load = Load(files, config.image_size, Jitter(jitter, seed))
    return _batches(plan, load, config, batch_size, world_size, sum(sizes))


def _batches(
    chunks: Iterator[Chunk], load: "Load", config: StreamConfig, batch_size: int, world_size: int, total: int
) -> Iterator[tuple[FaceBatch, Position]]:
    with closing(_Ahead(chunks, load, config, world_size)) as ahead:
        for chunk, table in ahead:
            position = chunk.first
            for batch in _unpack(table, config.image_size):
                position = after(position, batch_size * world_size, total)
                yield batch, position
                ahead.top_up()


class _Ahead(Iterator[tuple[Chunk, pa.Table]]):
    """Chunks in order, each with its decoded table; the next ones are decoded in Ray tasks meanwhile.

    Plain tasks and not a Ray Data pipeline: the order is fixed, every chunk is one task, and how many are ahead follows
    from the buffer, so that nothing is left to schedule. Ray Data's scheduler is a loop in Python in this very process,
    where it would hold the lock that a training step needs to start its kernels; here a task costs one call.
    """

    def __init__(self, chunks: Iterator[Chunk], load: "Load", config: StreamConfig, world_size: int) -> None:
        self._chunks, self._config, self._world_size = chunks, config, world_size
        self._load = ray.put(load)
        self._coming: deque[tuple[Chunk, ray.ObjectRef[pa.Table]]] = deque()
        self._running: list[ray.ObjectRef[pa.Table]] = []
        # Few at first, so that whoever stops early has decoded little in vain.
        self._wanted = TASKS_AHEAD
        self._pool, self._looked = (1, 0.0), -math.inf

    def __next__(self) -> tuple[Chunk, pa.Table]:
        self.top_up()
        chunk, reference = self._coming.popleft()  # what was consumed leaves the object store
        room = 2 * max(1, _buffer_rows(self._config) // len(chunk.row))
        self._wanted = max(TASKS_AHEAD, min(2 * self._wanted, room))
        return chunk, ray.get(reference)

    def top_up(self) -> None:
        """Starts as many tasks as there is room for: in the buffer, and beside those that are running."""
        if self._running:
            _, self._running = ray.wait(self._running, num_returns=len(self._running), timeout=0, fetch_local=False)
        while len(self._coming) < self._wanted and (not self._coming or len(self._running) < self._tasks()[0]):
            chunk = next(self._chunks)
            # By name the default strategy: on this node while it has room, since what is decoded is used here; and not
            # within the train worker's own share of the cluster.
            task = _load_chunk.options(num_cpus=self._tasks()[1], scheduling_strategy="DEFAULT")
            reference = task.remote(chunk, self._load)
            self._coming.append((chunk, reference))
            self._running.append(reference)

    def close(self) -> None:
        """Ends what is still being decoded."""
        for _, reference in self._coming if ray.is_initialized() else ():
            ray.cancel(reference)
        self._coming.clear()

    def _tasks(self) -> tuple[int, float]:
        """As ``_task_pool``, asked anew now and then, as a cluster may grow."""
        if time.monotonic() - self._looked > LOOK_SECONDS:
            own = len(self._running) * self._pool[1]
            self._pool, self._looked = _task_pool(self._config.task_cpus, self._world_size, own), time.monotonic()
        return self._pool


def batches_per_task(config: StreamConfig, batch_size: int) -> int:
    """How many successive batches of a worker one Ray task decodes."""
    return max(1, min(ROWS_PER_TASK, _buffer_rows(config) // TASKS_AHEAD) // batch_size)


def _buffer_rows(config: StreamConfig) -> int:
    """Decoded faces that fit into the buffer."""
    return config.buffer_mebibytes * 2**20 // (3 * config.image_size**2)


def _task_pool(task_cpus: float, world_size: int, own: float) -> tuple[int, float]:
    """How many tasks of one worker may run at once, and the logical CPUs each asks for; ``own`` are held by them now.

    Train workers may hold every CPU of a small machine for as long as they run. A task that asked for one would then
    wait for ever, and so would its worker: in that case tasks ask for none and the operating system shares the cores.
    """
    total = ray.cluster_resources().get("CPU", 1.0)
    free = ray.available_resources().get("CPU", 0.0) + own
    if free < task_cpus:
        _logger.info("no logical CPU is free for decoding (%.1f of %.1f): decoding shares the workers'", free, total)
        return max(1, int(total / world_size) // 2), 0.0
    return max(1, int(total / world_size)), task_cpus


@dataclass(frozen=True)
class Load:
    """What the tasks of one stream have in common: (shard, row group) of every group, and how faces are cut."""

    files: list[tuple[Path, int]]
    image_size: int
    jitter: Jitter


def load_chunk(chunk: Chunk, load: Load) -> pa.Table:
    """The rows of a chunk as one row a batch, arrays as their bytes."""
    cv2.setNumThreads(1)
    batches = chunk.batches
    loaded = read_rows(load.files, chunk.group, chunk.row, load.image_size, load.jitter, chunk.epoch)
    ids = np.array_split(np.array(loaded["ids"], object), batches)
    return pa.table(
        {
            "images": _as_rows(loaded["images"], batches),
            "landmarks": _as_rows(loaded["landmarks"], batches),
            "labels": _as_rows(loaded["labels"], batches),
            "ids": pa.array([part.tolist() for part in ids], pa.list_(pa.string())),
        }
    )


_load_chunk = ray.remote(max_retries=-1)(load_chunk)


def _as_rows(array: np.ndarray, rows: int) -> pa.Array:
    """The bytes of an array cut into equal rows, without a copy."""
    offsets = np.linspace(0, array.nbytes, rows + 1).astype(np.int64)
    buffers = [None, pa.py_buffer(offsets), pa.py_buffer(np.ascontiguousarray(array))]
    return pa.Array.from_buffers(pa.large_binary(), rows, buffers)


def _unpack(table: pa.Table, size: int) -> Iterator[FaceBatch]:
    for i in range(len(table)):
        images, landmarks, labels = (table[name][i].as_buffer() for name in ("images", "landmarks", "labels"))
        # Copied: a view would be read-only and keep the whole task's result in the object store.
        yield FaceBatch(
            images=np.frombuffer(images, np.uint8).reshape(-1, 3, size, size).copy(),
            landmarks=np.frombuffer(landmarks, np.float32).reshape(-1, LANDMARKS, 2).copy(),
            labels=np.frombuffer(labels, np.int64).reshape(-1, len(TAGS)).copy(),
            ids=table["ids"][i].as_py(),
        )
