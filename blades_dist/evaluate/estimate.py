"""A number with its uncertainty."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Estimate:
    """A value with its interval and the numbers of images it rests on; nan where it is not defined."""

    value: float
    low: float
    high: float
    n_real: int
    n_generated: int


def by_head(real: np.ndarray | Sequence[np.ndarray]) -> list[np.ndarray]:
    """Answers on the same photographs: one (n,) array for all generators, or one a generator's own head, as a list.

    Raises:
        ValueError: the arrays differ in length.
    """
    heads = [real] if isinstance(real, np.ndarray) and real.ndim == 1 else [np.asarray(one) for one in real]
    if len({len(one) for one in heads}) > 1:
        raise ValueError(
            f"answers on the same photographs are needed, got {', '.join(str(len(one)) for one in heads)} of them"
        )
    return heads
