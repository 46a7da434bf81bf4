"""Features of a shard split: what heads are fitted, calibrated and evaluated on."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from blades_dist.data.read import read_split
from blades_dist.data.records import read_manifest
from blades_dist.models.export import FrozenEncoder
from blades_dist.tasks import TAGS


@dataclass(frozen=True)
class FeatureSet:
    """n faces: ``features`` (n, D) float32 of norm 1, ``labels`` (n, len(TAGS)) int64 with -1 = absent, and of each
    face its record ``ids``, ``sources`` (first folder of the collection) and ``paths`` (within the collection).
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


def extract(
    encoder: FrozenEncoder,
    folder: Path,
    split: str,
    batch_size: int,
    limit: int | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> FeatureSet:
    """Features of a split's faces in stored order; ``progress`` gets (faces done, faces in all).

    Raises:
        FileNotFoundError: ``folder`` is no shard set.
        ValueError: the split is empty, or a feature is not finite.
    """
    total = sum(shard.rows for shard in read_manifest(folder).split(split))
    total = total if limit is None else min(total, limit)
    features, labels = [], []
    ids: list[str] = []
    sources: list[str] = []
    paths: list[str] = []
    for batch in read_split(folder, split, encoder.info.image_size, limit=limit, batch_size=batch_size):
        features.append(encoder.features(torch.as_tensor(batch["images"])).cpu().numpy())
        labels.append(np.asarray(batch["labels"], np.int64))
        ids += batch["ids"]
        sources += batch["sources"]
        paths += batch["paths"]
        if progress:
            progress(len(ids), total)
    joined = np.concatenate(features) if features else np.empty((0, encoder.info.embed_dim), np.float32)
    if not np.isfinite(joined).all():
        raise ValueError(f"the encoder gives features that are not finite on split {split!r} of {folder}")
    return FeatureSet(
        joined, ids, sources, paths, np.concatenate(labels) if labels else np.empty((0, len(TAGS)), np.int64)
    )
