"""Stored arrays of a head, checked once and alike for all kinds."""

from collections.abc import Collection, Mapping

import numpy as np


def checked(
    what: str,
    tensors: Mapping[str, np.ndarray],
    required: Collection[str],
    optional: Collection[str] = (),
    dtypes: Mapping[str, type[np.generic]] | None = None,
) -> dict[str, np.ndarray]:
    """Arrays by name as stored; ``dtypes`` names those that are not float64, ``what`` begins the messages.

    Raises:
        ValueError: one is missing, unknown, of another type or not finite.
    """
    for name in required:
        if name not in tensors:
            raise ValueError(f"{what} parameter {name!r} is missing")
    for name, value in tensors.items():
        if name not in required and name not in optional:
            raise ValueError(f"{what} has no parameter {name!r}; known: {', '.join([*required, *optional])}")
        dtype = np.dtype((dtypes or {}).get(name, np.float64))
        if value.dtype != dtype or not np.isfinite(value).all():
            raise ValueError(f"{what} parameter {name!r} is not finite {dtype}")
    return dict(tensors)


def shapes(tensors: Mapping[str, np.ndarray]) -> str:
    """Names with shapes, for messages."""
    return ", ".join(f"{name} {value.shape}" for name, value in tensors.items())


def check_features(features: np.ndarray, dimensions: int) -> None:
    """Raises ValueError unless ``features`` are (n, ``dimensions``)."""
    if features.ndim != 2 or features.shape[1] != dimensions:
        raise ValueError(f"expected features (n, {dimensions}), got {features.shape}")


def finite_rows(features: np.ndarray) -> np.ndarray:
    """(n, D) features to contiguous float64 rows to fit a head to.

    Raises:
        ValueError: another number of axes, or values that are not finite.
    """
    rows = np.ascontiguousarray(features, dtype=np.float64)
    if rows.ndim != 2 or not np.isfinite(rows).all():
        raise ValueError("features are not a finite (n, D) array: the encoder is damaged or diverged in training")
    return rows
