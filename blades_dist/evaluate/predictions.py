"""What a detector answered on a test set: all that metrics, tables and figures need of it."""

from collections.abc import Sequence
from dataclasses import dataclass, fields

import numpy as np


@dataclass(frozen=True)
class Predictions:
    """One detector on n images.

    Attributes:
        scores: (n,) float64, finite; larger = more like a photograph.
        flagged: (n,) bool, by the score alone: beyond the threshold of the detector's operating point.
        unsure: (n,) bool, gets no verdict, be it flagged (re-encodings disagree) or not (close to the threshold).
        p_values: (n,) conformal, in 0..1, small = suspicious; None: the detector has none.
        probability: (n,) of AI-generated, in 0..1; None: the detector has none.

    Raises:
        ValueError: a field of another length or type, not finite or out of range; the message names it.
    """

    scores: np.ndarray
    flagged: np.ndarray
    unsure: np.ndarray
    p_values: np.ndarray | None
    probability: np.ndarray | None

    def __post_init__(self) -> None:
        given = {field.name: getattr(self, field.name) for field in fields(self)}
        n = len(self.scores) if isinstance(self.scores, np.ndarray) and self.scores.ndim == 1 else None
        for name, values in given.items():
            if values is not None or name in ("scores", "flagged", "unsure"):
                _check(name, values, n)

    def __len__(self) -> int:
        return len(self.scores)

    @property
    def called(self) -> np.ndarray:
        """(n,) bool: the verdict is AI-generated."""
        return self.flagged & ~self.unsure


@dataclass(frozen=True)
class Pair:
    """Photographs and the faces of ONE generator under the SAME head.

    Raises:
        ValueError: one side has p-values or probabilities and the other has not.
    """

    real: Predictions
    generated: Predictions

    def __post_init__(self) -> None:
        for name in ("p_values", "probability"):
            if (getattr(self.real, name) is None) != (getattr(self.generated, name) is None):
                raise ValueError(f"predictions: {name} of both sides or of none, not of one")


def join(parts: Sequence[Predictions]) -> Predictions:
    """Predictions one after the other; what one part lacks the whole lacks.

    Raises:
        ValueError: no part.
    """
    if not parts:
        raise ValueError("predictions: nothing to join")

    def optional(values: list[np.ndarray | None]) -> np.ndarray | None:
        known = [one for one in values if one is not None]
        return np.concatenate(known) if len(known) == len(values) else None

    return Predictions(
        scores=np.concatenate([part.scores for part in parts]),
        flagged=np.concatenate([part.flagged for part in parts]),
        unsure=np.concatenate([part.unsure for part in parts]),
        p_values=optional([part.p_values for part in parts]),
        probability=optional([part.probability for part in parts]),
    )


def _check(name: str, values: object, n: int | None) -> None:
    if not isinstance(values, np.ndarray) or values.ndim != 1:
        raise ValueError(f"predictions: {name} must be an array of one dimension")
    if len(values) != n:
        raise ValueError(f"predictions: {name} has {len(values)} entries, scores has {n}")
    wanted = "b" if name in ("flagged", "unsure") else "f"
    if values.dtype.kind != wanted:
        raise ValueError(f"predictions: {name} is {values.dtype}, not {'bool' if wanted == 'b' else 'floating point'}")
    if wanted == "b":
        return
    if not np.isfinite(values).all():
        row = int(np.flatnonzero(~np.isfinite(values))[0])
        raise ValueError(f"predictions: {name}[{row}] is {values[row]}, not finite: the detector's head is damaged")
    if name != "scores" and len(values) and not 0 <= values.min() <= values.max() <= 1:
        raise ValueError(f"predictions: {name} ranges from {values.min():.6g} to {values.max():.6g}, not within 0 to 1")
