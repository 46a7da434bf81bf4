"""The figures of an evaluation; what repeats a colour changes its line."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from sklearn.decomposition import PCA
from sklearn.manifold import TSNE
from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]

from blades_dist.evaluate.metrics import ladder, roc
from blades_dist.evaluate.tables import Assessment, show
from blades_dist.figures import LIGHT, Theme, themed

REAL = "photographs"
LINES = ("-", "--", ":", "-.")
MARKERS = ("s", "^", "D", "v", "P", "X", "*")


@themed
def plot_roc(
    real: np.ndarray,
    generated: Mapping[str, np.ndarray],
    assessment: Assessment,
    title: str,
    confidence: float = 0.95,
    *,
    theme: Theme = LIGHT,
) -> Figure:
    """One ROC curve a generator against all photographs; scores as in ``metrics``."""
    figure = Figure(figsize=(7.2, 6.4), layout="constrained")
    axes = figure.add_subplot()
    axes.plot([0, 100], [0, 100], color=theme.faint, linewidth=1.5, label="chance")
    for i, name in enumerate(assessment.generators):
        if not len(real) or not len(generated[name]):
            continue
        fpr, tpr = roc(*ladder(real, generated[name]))
        area = assessment.ranked["AUC"].estimate(i, confidence)
        label = f"{name}: AUC {show(area)}"
        axes.plot(100 * fpr[0], 100 * tpr[0], _line(i, theme), color=_colour(i, theme), label=label)
    axes.set(xlim=(-1, 101), ylim=(-1, 101), title=title)
    axes.set_xlabel(f"photographs flagged (FPR), % of {len(real)}")
    axes.set_ylabel("generated images flagged (TPR), %")
    axes.set_aspect("equal")
    axes.legend(loc="lower right")
    return figure


@themed
def plot_scores(
    real: np.ndarray,
    generated: Mapping[str, np.ndarray],
    threshold: float,
    title: str,
    unit: str,
    *,
    theme: Theme = LIGHT,
) -> Figure:
    """One histogram a generator over that of the photographs, as shares of each side, with the threshold."""
    shown = {name: scores for name, scores in generated.items() if len(scores)}
    columns = min(3, max(1, len(shown)))
    rows = max(1, -(-len(shown) // columns))
    low, high = _limits(real, *shown.values(), threshold=threshold)
    typical = np.median([len(scores) for scores in shown.values()]) if shown else 100
    bins = np.linspace(low, high, 1 + int(np.clip(2 * np.sqrt(typical), 12, 40)))
    figure = Figure(figsize=(max(6.5, 4.3 * columns), 3.1 * rows + 1.1), layout="constrained")
    panels = figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False)
    for axes in panels.flat[len(shown) :]:
        axes.set_axis_off()
    inner = 1.0
    for i, (axes, (name, scores)) in enumerate(zip(panels.flat, shown.items(), strict=False)):
        behind = _histogram(axes, real, bins, color=theme.real, alpha=0.55, label=f"{REAL} (n = {len(real)})")
        before = _histogram(axes, scores, bins, color=_colour(i, theme), histtype="step", linewidth=2.2)
        inner = max(inner, behind.max(), before[1:-1].max())
        if np.isfinite(threshold):
            axes.axvline(threshold, color=theme.text, linestyle="--", linewidth=1.5, label="threshold: flagged left")
        axes.set_title(f"{name} (n = {len(scores)})")
        axes.tick_params(labelbottom=True)
        axes.locator_params(axis="x", nbins=5)
        axes.set_xlabel(f"score, {unit}")
    for axes in panels[:, 0]:
        axes.set_ylabel("share of each side, %")
    # A side that lies wholly beyond the range would otherwise flatten every panel; its bar may run out at the top.
    panels[0, 0].set_ylim(0, 1.12 * inner)
    figure.suptitle(title)
    if shown:
        figure.legend(*panels.flat[0].get_legend_handles_labels(), loc="outside lower center", ncols=2)
    return figure


@themed
def plot_weights(
    history: Sequence[tuple[int, Sequence[float]]], names: Sequence[str], *, theme: Theme = LIGHT
) -> Figure:
    """Trajectories of the task weights λ: ``history`` holds (step, K weights), ``names`` the K tasks.

    Raises:
        ValueError: a step has not one weight a name.
    """
    if any(len(weights) != len(names) for _, weights in history):
        raise ValueError(f"every step needs {len(names)} weights, one each for {', '.join(names)}")
    figure = Figure(figsize=(9.5, 5.4), layout="constrained")
    axes = figure.add_subplot()
    steps = [step for step, _ in history]
    values = np.array([weights for _, weights in history], float).reshape(len(history), len(names))
    last = values[-1] if len(values) else np.zeros(len(names))
    for i in np.argsort(-last, kind="stable"):  # the legend in the order in which the lines end
        every = max(1, len(steps) // 8)
        style: dict[str, Any] = {"color": _colour(i, theme), "marker": _marker(i), "markersize": 6}
        axes.plot(
            steps,
            values[:, i],
            _line(i, theme),
            markevery=(int(i) % every, every),
            label=f"{names[i]}  {last[i]:.3f}",
            **style,
        )
    axes.set(xlabel="training step", ylabel="task weight λ (no unit)", title="Weights that the outer loop learned")
    figure.legend(loc="outside right upper", title="task, weight at the end", handlelength=3)
    return figure


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
            "marker": _marker(i),
            "color": _colour(i, theme),
            "alpha": 0.75,
            "linewidths": 0,
        }
        axes.scatter(own[:, 0], own[:, 1], label=f"{name} (n = {len(own)})", **style)
    axes.set(xlabel=f"{method} 1 (arbitrary unit)", ylabel=f"{method} 2 (arbitrary unit)", title=title)
    axes.set_xticks([])
    axes.set_yticks([])
    figure.legend(loc="outside right upper", markerscale=1.6)
    return figure


def project(features: np.ndarray, seed: int = 0) -> tuple[np.ndarray, str]:
    """(n, D) features to (n, 2) and the method's name: t-SNE, or principal components below 30 points."""
    if len(features) < 2:
        return np.zeros((len(features), 2)), "principal component"
    parts = min(2 if len(features) < 30 else 50, *features.shape)
    # One thread: under load, threads that wait for each other take ten times as long.
    with threadpool_limits(1):
        points = PCA(parts, random_state=seed).fit_transform(features)
        if len(features) < 30:
            return np.pad(points, ((0, 0), (0, 2 - parts))), "principal component"
        perplexity = min(30.0, (len(features) - 1) / 3)
        flat = TSNE(perplexity=perplexity, init="pca", max_iter=500, random_state=seed).fit_transform(points)
    return flat, "t-SNE"


def _histogram(axes: Axes, scores: np.ndarray, bins: np.ndarray, **style: Any) -> np.ndarray:
    """Draws shares in % and returns them; what lies beyond the shown range is counted in the outermost bins."""
    clipped = np.clip(scores, bins[0], bins[-1])
    shares, *_ = axes.hist(clipped, list(bins), weights=np.full(len(clipped), 100 / max(1, len(clipped))), **style)
    return np.asarray(shares)


def _limits(*sides: np.ndarray, threshold: float) -> tuple[float, float]:
    """Shown range: every side's 1% to 99%, but no side may squeeze the photographs into a few bins."""
    real = sides[0] if len(sides[0]) else np.concatenate([*sides, np.zeros(1)])
    inner = np.quantile(real, [0.01, 0.99])
    reach = 4 * max(inner[1] - inner[0], 1e-9)
    low = min(float(np.quantile(side, 0.01)) for side in sides if len(side)) if any(map(len, sides)) else 0.0
    high = max(float(np.quantile(side, 0.99)) for side in sides if len(side)) if any(map(len, sides)) else 1.0
    low, high = max(low, inner[0] - reach), min(high, inner[1] + reach)
    if np.isfinite(threshold):
        low, high = min(low, threshold), max(high, threshold)
    margin = 0.02 * max(high - low, 1e-9)
    return low - margin, high + margin


def _colour(index: int, theme: Theme) -> str:
    return theme.colours[index % len(theme.colours)]


def _line(index: int, theme: Theme) -> str:
    return LINES[index // len(theme.colours) % len(LINES)]


def _marker(index: int) -> str:
    # Shifted once a round of the colours, so that no two lines share both.
    return MARKERS[(index + index // len(MARKERS)) % len(MARKERS)]
