"""Does a file's EXIF fit its pixels? The probability that the pretext tasks give to what the file claims.

For every EXIF tag that a file carries, the encoder says how likely each class looks from the pixels alone. The log of
the probability of the claimed class is compared with that of photographs of the calibration split for the classes that
*they* claim: a conformal p-value a tag, and one for all claimed tags together. Small means: few real photographs are
contradicted so strongly by their own pixels. It says nothing of who is wrong, pixels or metadata, and EXIF is easily
copied; so it is told beside the verdict and never enters it.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from blades_dist.data.exif import Raw, labels
from blades_dist.tasks import ABSENT, TASKS, vocabulary

SMALLEST = 19  # calibration photographs with the same tags, below which no p-value of 5% could come out


@dataclass(frozen=True)
class ClaimedTag:
    """What a file claims for one tag, the probability that its pixels give to it, and that probability's p-value."""

    claimed: str
    probability: float
    p_value: float | None


@dataclass(frozen=True)
class ExifConsistency:
    """Per claimed tag, and the ``p_value`` of all together among ``compared_with`` photographs that claim them all;
    None where there are fewer than ``SMALLEST``."""

    tags: dict[str, ClaimedTag]
    p_value: float | None
    compared_with: int


@dataclass(frozen=True)
class ConsistencyCalibration:
    """``log_probability`` (n, T) float64 of what n calibration photographs claim for ``tags``; NaN where absent."""

    tags: tuple[str, ...]
    log_probability: np.ndarray

    def assess(self, claimed: Mapping[str, int], log_probability: Mapping[str, float]) -> ExifConsistency | None:
        """Of a face whose file claims class ``claimed[tag]``; None if it claims nothing that the encoder knows."""
        known = [tag for tag in self.tags if claimed.get(tag, ABSENT) != ABSENT and tag in log_probability]
        if not known:
            return None
        columns = [self.tags.index(tag) for tag in known]
        found = {}
        for tag, column in zip(known, columns, strict=True):
            own = self.log_probability[:, column]
            p = _p_value(own[~np.isnan(own)], log_probability[tag])
            found[tag] = ClaimedTag(vocabulary(tag)[claimed[tag]], float(np.exp(log_probability[tag])), p)
        all_claimed = self.log_probability[:, columns]
        like = all_claimed[~np.isnan(all_claimed).any(1)].mean(1)
        own_mean = float(np.mean([log_probability[tag] for tag in known]))
        return ExifConsistency(found, _p_value(like, own_mean), len(like))


def calibrate_consistency(
    logits: Tensor, classes: Mapping[str, Sequence[str]], found: np.ndarray, tags: Sequence[str]
) -> ConsistencyCalibration:
    """From (n, C) pretext logits of calibration photographs and their labels (n, len(tags)), -1 = absent."""
    known = [tag for tag in tags if tag in classes]
    columns = []
    for tag in known:
        claimed = found[:, list(tags).index(tag)]
        log_probability = log_probabilities(logits, classes)[tag].numpy()
        chosen = log_probability[np.arange(len(claimed)), np.maximum(claimed, 0)]
        columns.append(np.where(claimed == ABSENT, np.nan, chosen))
    stacked = np.stack(columns, 1) if columns else np.empty((len(found), 0))
    return ConsistencyCalibration(tuple(known), stacked[~np.isnan(stacked).all(1)] if columns else stacked)


def log_probabilities(logits: Tensor, classes: Mapping[str, Sequence[str]]) -> dict[str, Tensor]:
    """(n, C) pretext logits to log-probabilities (n, classes), float64, of every EXIF task by its tag."""
    tags = {task.name: task.tag for task in TASKS}
    found, start = {}, 0
    for name, own in classes.items():
        tag = tags.get(name)
        if tag is not None:
            found[tag] = torch.log_softmax(logits[:, start : start + len(own)].double(), 1)
        start += len(own)
    return found


def claimed_labels(exif: Raw, edges: Mapping[str, tuple[float, float]]) -> dict[str, int]:
    """Class of every tag that a file carries; ordinal values by the bin ``edges`` of the shards the detector is of."""
    return {tag: label for tag, label in labels(exif, edges).items() if label != ABSENT}


def _p_value(calibration: np.ndarray, value: float) -> float | None:
    if len(calibration) < SMALLEST:
        return None
    return float((1 + (calibration <= value).sum()) / (len(calibration) + 1))
