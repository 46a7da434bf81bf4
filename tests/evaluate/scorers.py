"""Scorers as a user may write them."""

from collections.abc import Sequence

import numpy as np


def brightness(crops: Sequence[np.ndarray]) -> np.ndarray:
    return np.array([crop.mean() for crop in crops])


def short(crops: Sequence[np.ndarray]) -> np.ndarray:
    return np.zeros(1)
