"""Rows of shards as arrays: reading single rows, and a whole split in stored order. No Ray here."""

from collections.abc import Iterator
from pathlib import Path
from typing import TypedDict

import cv2
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from blades_dist.data.jitter import STILL, Jitter
from blades_dist.data.records import LANDMARKS, label_column, read_manifest
from blades_dist.tasks import TAGS

COLUMNS = ("id", "image", "landmarks", *(label_column(tag) for tag in TAGS))


class FaceBatch(TypedDict):
    """Faces ready for the device; B rows at S x S pixels."""

    images: np.ndarray
    """(B, 3, S, S) uint8, RGB."""
    landmarks: np.ndarray
    """(B, 5, 2) float32, x and y in pixels of the S x S image; order as in ``faces.Face``."""
    labels: np.ndarray
    """(B, len(TAGS)) int64 in the order of ``tasks.TAGS``; -1 = absent."""
    ids: list[str]


class StoredBatch(FaceBatch):
    """A batch that also says where its faces come from."""

    sources: list[str]
    paths: list[str]


def read_split(
    folder: Path, split: str, image_size: int, limit: int | None = None, batch_size: int = 128
) -> Iterator[StoredBatch]:
    """The rows of a split in stored order; the last batch may be smaller, nothing is dropped.

    Rows are stored by hash, so the first ``limit`` of them are a fair sample of the split.

    Raises:
        FileNotFoundError: the folder holds no manifest.
        ValueError: the split has no rows.
    """
    shards = read_manifest(folder).split(split)
    left = sum(shard.rows for shard in shards) if limit is None else limit
    pending: list[pa.Table] = []
    for shard in shards:
        with pq.ParquetFile(folder / shard.name) as file:
            for group in range(file.num_row_groups):
                table = file.read_row_group(group, columns=[*COLUMNS, "source", "path"], use_threads=False)
                table = table.slice(0, left)
                left -= len(table)
                pending.append(table)
                while sum(map(len, pending)) >= batch_size:
                    joined = pa.concat_tables(pending)
                    yield _stored_batch(joined.slice(0, batch_size), image_size)
                    pending = [joined.slice(batch_size)]
                if left == 0:
                    break
        if left == 0:
            break
    rest = pa.concat_tables(pending)
    if len(rest):
        yield _stored_batch(rest, image_size)


def read_rows(
    files: list[tuple[Path, int]],
    group: np.ndarray,
    row: np.ndarray,
    image_size: int,
    jitter: Jitter = STILL,
    epoch: np.ndarray | None = None,
) -> FaceBatch:
    """Rows ``row[i]`` of row groups ``files[group[i]]`` (shard, number of the group), in that order, each jittered as
    it comes in epoch ``epoch[i]`` (None: 0).

    Every group is read once, and its encoded images are let go before the next is read: memory is one row group's
    bytes besides the result.
    """
    epoch = np.zeros(len(row), np.int64) if epoch is None else epoch
    batch = empty_batch(len(row), image_size)
    # By group, then row: sequential reading, and each group once.
    by_place = np.lexsort((row, group))
    file, opened = None, None
    try:
        for places in np.split(by_place, np.flatnonzero(np.diff(group[by_place])) + 1):
            path, number = files[int(group[places[0]])]
            if path != opened:
                if file is not None:
                    file.close()
                file, opened = pq.ParquetFile(path), path
            assert file is not None
            table = file.read_row_group(number, columns=list(COLUMNS), use_threads=False)
            if not np.array_equal(row[places], np.arange(len(table))):
                table = table.take(row[places])
            fill(batch, places, table, image_size, jitter, epoch)
    finally:
        if file is not None:
            file.close()
    return batch


def empty_batch(rows: int, image_size: int) -> FaceBatch:
    """A batch to be filled."""
    return FaceBatch(
        images=np.empty((rows, 3, image_size, image_size), np.uint8),
        landmarks=np.empty((rows, LANDMARKS, 2), np.float32),
        labels=np.empty((rows, len(TAGS)), np.int64),
        ids=[""] * rows,
    )


def fill(
    batch: FaceBatch,
    places: np.ndarray,
    table: pa.Table,
    image_size: int,
    jitter: Jitter = STILL,
    epoch: np.ndarray | None = None,
) -> None:
    """Decodes the rows of a shard table into ``places`` of a batch; ``epoch`` has one number a place of the batch."""
    images = table["image"].combine_chunks()
    marks = table["landmarks"].combine_chunks().flatten().to_numpy().reshape(-1, LANDMARKS, 2)
    for i, (place, name) in enumerate(zip(places, table["id"].to_pylist(), strict=True)):
        pixels = decoded(np.frombuffer(images[i].as_buffer(), np.uint8), name)
        window = jitter.window(name, 0 if epoch is None else int(epoch[place]), pixels.shape[:2], marks[i])
        scale = resize_into(batch["images"][place], pixels[window.rows, window.columns])
        # Pixel centres lie at half-integers of the picture's extent, which is what a resize maps.
        batch["landmarks"][place] = (marks[i] - window.corner + 0.5) * scale - 0.5
        batch["ids"][place] = name
    for column, tag in enumerate(TAGS):
        batch["labels"][places, column] = table[label_column(tag)].to_numpy()


def decoded(encoded: np.ndarray, name: str = "") -> np.ndarray:
    """A stored crop's pixels (H, W, 3) uint8 in OpenCV's BGR.

    Raises:
        ValueError: the bytes are no image: the shard is damaged.
    """
    pixels = cv2.imdecode(encoded, cv2.IMREAD_COLOR)
    if pixels is None:
        raise ValueError(f"row {name}: the stored image cannot be decoded, the shard is damaged; run ingest again")
    return np.asarray(pixels)


def resize_into(target: np.ndarray, pixels: np.ndarray) -> np.ndarray:
    """Resizes BGR pixels into ``target`` (3, S, S) uint8 RGB; returns the factors, (x, y)."""
    height, width = pixels.shape[:2]
    size = target.shape[-1]
    if (height, width) != (size, size):
        smaller = size < min(height, width)
        pixels = cv2.resize(pixels, (size, size), interpolation=cv2.INTER_AREA if smaller else cv2.INTER_LINEAR)
    for channel in range(3):
        cv2.extractChannel(pixels, 2 - channel, target[channel])
    return np.array([size / width, size / height], np.float32)


def _stored_batch(table: pa.Table, image_size: int) -> StoredBatch:
    table = table.combine_chunks()
    batch = empty_batch(len(table), image_size)
    fill(batch, np.arange(len(table)), table, image_size)
    return StoredBatch(**batch, sources=table["source"].to_pylist(), paths=table["path"].to_pylist())
