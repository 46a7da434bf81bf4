"""Features of faces with what is known of them: what heads are fitted, calibrated and evaluated on."""

import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import pyarrow.parquet as pq
import torch

from blades_dist.data.read import decoded
from blades_dist.models.export import FrozenEncoder


@dataclass(frozen=True)
class FeatureSet:
    """n faces: ``features`` (n, D) float32, ``labels`` (n, len(TAGS)) int64 with -1 = absent, and of each face its
    record ``ids``, ``sources`` (first folder of the collection) and ``paths`` (within the collection).
    """

    features: np.ndarray
    ids: list[str]
    sources: list[str]
    paths: list[str]
    labels: np.ndarray

    def __len__(self) -> int:
        return len(self.ids)

    def where(self, keep: np.ndarray) -> "FeatureSet":
        """The rows of a (n,) bool mask."""
        rows = np.flatnonzero(keep)
        ids, sources, paths = ([column[i] for i in rows] for column in (self.ids, self.sources, self.paths))
        return FeatureSet(self.features[rows], ids, sources, paths, self.labels[rows])


def encode(encoder: FrozenEncoder, faces: Iterable[np.ndarray], batch_size: int) -> np.ndarray:
    """Face crops, each (H, W, 3) uint8 RGB of any size, to (n, D) float32 features."""
    return encode_prepared(encoder, map(encoder.prepare, faces), batch_size)


def encode_prepared(encoder: FrozenEncoder, crops: Iterable[np.ndarray], batch_size: int) -> np.ndarray:
    """Crops as ``encoder.prepare`` makes them, (3, S, S) each, to (n, D) float32 features."""
    found: list[np.ndarray] = []
    waiting: list[np.ndarray] = []

    def flush() -> None:
        found.append(encoder.features(torch.from_numpy(np.stack(waiting))).cpu().numpy())
        waiting.clear()

    for crop in crops:
        waiting.append(crop)
        if len(waiting) == batch_size:
            flush()
    if waiting:
        flush()
    return np.concatenate(found) if found else np.empty((0, encoder.info.embed_dim), np.float32)


def stored_faces(shard: Path, first: int, last: int) -> Iterator[tuple[str, np.ndarray]]:
    """Ids and crops (H, W, 3) uint8 RGB of row groups ``first`` to ``last`` (not included), one group at a time."""
    with pq.ParquetFile(shard) as file:
        for group in range(first, last):
            table = file.read_row_group(group, columns=["id", "image"], use_threads=False)
            images = table["image"].combine_chunks()
            for i, name in enumerate(table["id"].to_pylist()):
                pixels = decoded(np.frombuffer(images[i].as_buffer(), np.uint8), name)
                yield name, cv2.cvtColor(pixels, cv2.COLOR_BGR2RGB)


def face_seed(name: str) -> int:
    """Seed of what is random in a perturbation of a face, from its id alone."""
    return zlib.crc32(name.encode())
