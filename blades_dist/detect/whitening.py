"""Projection on leading principal axes, scaled to unit variance."""

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Whitening:
    """z = ((x - mean) @ components.T) / scale: ``mean`` (D,), ``components`` (P, D), ``scale`` (P,), all float64."""

    mean: np.ndarray
    components: np.ndarray
    scale: np.ndarray

    def apply(self, rows: np.ndarray) -> np.ndarray:
        """(n, D) float64 rows to (n, P)."""
        return ((rows - self.mean) @ self.components.T) / self.scale


def fit_whitening(rows: np.ndarray, components: int) -> Whitening:
    """The leading principal axes of (n, D) float64 rows by the eigenvectors of their covariance.

    Signs are fixed, so that refits agree.

    Raises:
        ValueError: fewer directions than ``components`` carry variance.
    """
    mean = rows.mean(0)
    values, vectors = np.linalg.eigh(np.cov(rows, rowvar=False).reshape(rows.shape[1], -1))
    values, axes = values[::-1][:components], vectors.T[::-1][:components]
    usable = int((values > 1e-10 * max(values[0], np.finfo(float).tiny)).sum())
    if usable < components:
        raise ValueError(
            f"oc.pca={components}: the features vary in {usable} directions only; set oc.pca to at most {usable}"
        )
    largest = np.abs(axes).argmax(1)
    axes = axes * np.sign(axes[np.arange(len(axes)), largest])[:, None]
    return Whitening(mean, np.ascontiguousarray(axes), np.sqrt(values))
