"""Batches for the train workers: decoded and resized in Ray Data tasks, in an order that can be resumed anywhere."""

import logging
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from itertools import islice
from pathlib import Path

import cv2
import numpy as np
import pyarrow as pa
import ray
from ray.data import DataContext, TaskPoolStrategy

from blades_dist.config import StreamConfig
from blades_dist.data.jitter import Jitter
from blades_dist.data.order import Chunk, Position, after, chunks, global_batches
from blades_dist.data.read import FaceBatch, read_rows
from blades_dist.data.records import LANDMARKS, read_manifest
from blades_dist.ray_private import mute_data_progress
from blades_dist.tasks import TAGS

__all__ = ["FaceBatch", "Position", "quiet_ray_data", "stream"]

ROWS_PER_TASK = 512  # a Ray task costs some ten milliseconds, and re-reads the window's row groups: not one a batch
TASKS_PER_SPAN = 2  # at least, where the buffer is too small for so many rows each

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
    first = list(islice(plan, 1))
    load = partial(load_chunk, files=files, image_size=config.image_size, jitter=Jitter(jitter, seed))
    return _batches(first, plan, load, config, batch_size, world_size, sum(sizes))


def _batches(
    first: list[Chunk],
    plan: Iterator[Chunk],
    load: Callable[[pa.Table], pa.Table],
    config: StreamConfig,
    batch_size: int,
    world_size: int,
    total: int,
) -> Iterator[tuple[FaceBatch, Position]]:
    with ThreadPoolExecutor(1, thread_name_prefix="stream") as background:

        def begin(chunks: list[Chunk]) -> tuple[list[Chunk], Future[list[ray.ObjectRef[pa.Table]]]]:
            return chunks, background.submit(_run, chunks, load, config, world_size)

        # The first run is short, so that training starts soon, and each next one, under way while one is consumed, at
        # most twice as long: whoever stops early has decoded little in vain.
        coming = begin(first)
        while True:
            span, future = coming
            tables = future.result()
            room = _buffer_rows(config) // len(span[0].row)
            coming = begin(list(islice(plan, max(1, min(2 * len(span), room)))))
            for chunk in span:
                position = chunk.first
                table = ray.get(tables.pop(0))  # popped: what was consumed leaves the object store
                for batch in _unpack(table, config.image_size):
                    position = after(position, batch_size * world_size, total)
                    yield batch, position


def batches_per_task(config: StreamConfig, batch_size: int) -> int:
    """How many successive batches of a worker one Ray task decodes."""
    return max(1, min(ROWS_PER_TASK, _buffer_rows(config) // TASKS_PER_SPAN) // batch_size)


def _buffer_rows(config: StreamConfig) -> int:
    """Decoded faces that fit into the buffer."""
    return config.buffer_mebibytes * 2**20 // (3 * config.image_size**2)


def quiet_ray_data() -> DataContext:
    """A copy of Ray Data's context in which it prints nothing by itself; this package reports progress."""
    return _quiet(DataContext.get_current().copy())


def _quiet(context: DataContext) -> DataContext:
    logging.getLogger("ray.data").setLevel(logging.WARNING)
    mute_data_progress()
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    context.enable_auto_log_stats = False
    return context


def _keep_order() -> None:
    """Sets this process's own context, for good: a context for a while, as ``DataContext.current`` has it, is the whole
    process's too, and two streams in threads would take it from each other, the order of their rows with it."""
    context = _quiet(DataContext.get_current())
    context.execution_options.preserve_order = True
    # A trainer that is busy elsewhere (evaluation, a checkpoint) is no error.
    context.execution_no_progress_timeout_s = -1


def _run(
    span: list[Chunk], load: Callable[[pa.Table], pa.Table], config: StreamConfig, world_size: int
) -> "list[ray.ObjectRef[pa.Table]]":
    """Runs the chunks through Ray Data to the end; one table each, in order, in the object store.

    Not one long pipeline read by demand: while that waits for its reader, Ray Data's scheduler spins, and on a small
    machine takes a core from the training beside it.
    """
    workers, cpus = _task_pool(config.task_cpus, world_size)
    _keep_order()
    # Not from_arrow: that looks at its tables in Ray tasks of a whole CPU each, which train workers may all hold.
    dataset = ray.data.from_items([pack_chunk(chunk) for chunk in span], override_num_blocks=len(span)).map_batches(
        load,
        batch_size=None,
        batch_format="pyarrow",
        zero_copy_batch=True,
        num_cpus=cpus,
        compute=TaskPoolStrategy(size=min(workers, len(span))),
    )
    return list(dataset.materialize().to_arrow_refs())


def _task_pool(task_cpus: float, world_size: int) -> tuple[int, float]:
    """How many tasks of one worker may run at once, and the logical CPUs each asks for.

    Train workers may hold every CPU of a small machine for as long as they run. A task that asked for one would then
    wait for ever, and so would its worker: in that case tasks ask for none and the operating system shares the cores.
    """
    total = ray.cluster_resources().get("CPU", 1.0)
    free = ray.available_resources().get("CPU", 0.0)
    if free < task_cpus:
        _logger.info("no logical CPU is free for decoding (%.1f of %.1f): decoding shares the workers'", free, total)
        return max(1, int(total / world_size) // 2), 0.0
    return max(1, int(total / world_size)), task_cpus


def pack_chunk(chunk: Chunk) -> dict[str, int | bytes]:
    """A chunk as the row of a table that ``load_chunk`` takes."""
    arrays = {"epoch": chunk.epoch, "group": chunk.group, "row": chunk.row}
    return {"batches": chunk.batches} | {name: array.astype(np.int64).tobytes() for name, array in arrays.items()}


def load_chunk(task: pa.Table, files: list[tuple[Path, int]], image_size: int, jitter: Jitter) -> pa.Table:
    """Runs in a Ray task: the rows of one chunk as one row a batch, arrays as their bytes."""
    cv2.setNumThreads(1)
    (packed,) = task.to_pylist()
    batches = packed["batches"]
    epoch, group, row = (np.frombuffer(packed[name], np.int64) for name in ("epoch", "group", "row"))
    loaded = read_rows(files, group, row, image_size, jitter, epoch)
    ids = np.array_split(np.array(loaded["ids"], object), batches)
    return pa.table(
        {
            "images": _as_rows(loaded["images"], batches),
            "landmarks": _as_rows(loaded["landmarks"], batches),
            "labels": _as_rows(loaded["labels"], batches),
            "ids": pa.array([part.tolist() for part in ids], pa.list_(pa.string())),
        }
    )


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
