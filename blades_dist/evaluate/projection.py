"""Features in two dimensions, to look at."""

import importlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from matplotlib.figure import Figure
from sklearn.decomposition import PCA
from sklearn.manifold import TSNE
from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]

from blades_dist.evaluate.plots import REAL
from blades_dist.report.figures import LIGHT, Theme, colour, marker, themed

Method = Literal["tsne", "umap"]
SHOWN = 1000  # faces in a projection at most
_FEWEST = 30  # points below which only principal components are of use


@dataclass(frozen=True)
class Projection:
    """``points`` (n, 2), ``groups`` the side of each (``REAL`` or a generator), ``method`` its name."""

    points: np.ndarray
    groups: list[str]
    method: str


def project(
    real: np.ndarray, generated: Mapping[str, np.ndarray], method: Method = "tsne", seed: int = 0
) -> Projection:
    """A fair sample of at most ``SHOWN`` rows of features (n, D) and (m_f, D) by generator, projected together.

    Raises:
        ValueError: ``method`` is "umap" and umap-learn is not installed.
    """
    check_method(method)
    features = np.concatenate([real, *generated.values()])
    sides = [REAL] * len(real) + [name for name, own in generated.items() for _ in range(len(own))]
    kept = np.sort(np.random.default_rng(seed).permutation(len(features))[:SHOWN])
    points, name = flatten(features[kept], method, seed)
    return Projection(points, [sides[i] for i in kept], name)


def check_method(method: Method) -> None:
    """Says before any work whether ``method`` can be done here.

    Raises:
        ValueError: an unknown method, or "umap" without umap-learn installed.
    """
    if method == "umap":
        _umap()
    elif method != "tsne":
        raise ValueError(f"projection: {method} is unknown; choose tsne or umap")


def flatten(features: np.ndarray, method: Method = "tsne", seed: int = 0) -> tuple[np.ndarray, str]:
    """(n, D) features to (n, 2) and the method's name: as asked for, or principal components below 30 points."""
    if len(features) < 2:
        return np.zeros((len(features), 2)), "principal component"
    parts = min(2 if len(features) < _FEWEST else 50, *features.shape)
    # One thread: under load, threads that wait for each other take ten times as long.
    with threadpool_limits(1):
        points = PCA(parts, random_state=seed).fit_transform(features)
        if len(features) < _FEWEST:
            return np.pad(points, ((0, 0), (0, 2 - parts))), "principal component"
        if method == "umap":
            return np.asarray(_umap().UMAP(random_state=seed, n_jobs=1).fit_transform(points)), "UMAP"
        perplexity = min(30.0, (len(features) - 1) / 3)
        return TSNE(perplexity=perplexity, init="pca", max_iter=500, random_state=seed).fit_transform(points), "t-SNE"


@themed
def plot_projection(
    points: np.ndarray, groups: Sequence[str], method: str, title: str, *, theme: Theme = LIGHT
) -> Figure:
    """Scatter of (n, 2) points; ``groups`` names each one's side, ``REAL`` or a generator."""
    figure = Figure(figsize=(9, 6.6), layout="constrained")
    axes = figure.add_subplot()
    sides = np.array(groups)
    names = [name for name in dict.fromkeys(groups) if name != REAL]
    if (sides == REAL).any():
        own = points[sides == REAL]
        axes.scatter(
            own[:, 0], own[:, 1], s=22, color=theme.real, alpha=0.45, linewidths=0, label=f"{REAL} (n = {len(own)})"
        )
    for i, name in enumerate(names):
        own = points[sides == name]
        style: dict[str, Any] = {
            "s": 24,
            "marker": marker(i),
            "color": colour(i, theme),
            "alpha": 0.75,
            "linewidths": 0,
        }
        axes.scatter(own[:, 0], own[:, 1], label=f"{name} (n = {len(own)})", **style)
    axes.set(xlabel=f"{method} 1 (arbitrary unit)", ylabel=f"{method} 2 (arbitrary unit)", title=title)
    axes.set_xticks([])
    axes.set_yticks([])
    figure.legend(loc="outside right upper", markerscale=1.6)
    return figure


def _umap() -> Any:
    try:
        return importlib.import_module("umap")
    except ImportError as error:
        raise ValueError(
            f"projection: umap needs the package umap-learn ({error}); install it, or choose projection=tsne"
        ) from None
