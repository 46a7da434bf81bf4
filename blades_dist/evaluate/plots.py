"""Figures of one detector, and of the training that its encoder had."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from blades_dist.evaluate.assess import Assessment
from blades_dist.evaluate.predictions import Pair
from blades_dist.evaluate.ranking import roc, roc_counts
from blades_dist.evaluate.table_formats import show
from blades_dist.report.figures import LIGHT, Theme, colour, label_left, line, marker, panels, themed

REAL = "photographs"


@themed
def plot_roc(assessment: Assessment, title: str, confidence: float = 0.95, *, theme: Theme = LIGHT) -> Figure:
    """One ROC curve a generator against all photographs; scores as in ``ranking``."""
    figure = Figure(figsize=(7.2, 6.4), layout="constrained")
    axes = figure.add_subplot()
    axes.plot([0, 100], [0, 100], color=theme.faint, linewidth=1.5, label="chance")
    for i, (name, pair) in enumerate(assessment.pairs.items()):
        if not len(pair.real) or not len(pair.generated):
            continue
        fpr, tpr = roc(*roc_counts(pair.real.scores, pair.generated.scores))
        area = assessment.ranked["AUC"].estimate(i, confidence)
        label = f"{name}: AUC {show(area)}"
        axes.plot(100 * fpr[0], 100 * tpr[0], line(i, theme), color=colour(i, theme), label=label)
    axes.set(xlim=(-1, 101), ylim=(-1, 101), title=title)
    axes.set_xlabel(f"photographs flagged (FPR), % of {assessment.n_real}")
    axes.set_ylabel("generated images flagged (TPR), %")
    axes.set_aspect("equal")
    axes.legend(loc="lower right")
    return figure


@themed
def plot_scores(
    pairs: Mapping[str, Pair], threshold: float | None, title: str, unit: str, *, theme: Theme = LIGHT
) -> Figure:
    """One histogram a generator over that of the photographs, as shares of each side, with the threshold if known."""
    shown = {name: pair for name, pair in pairs.items() if len(pair.generated)}
    real = [pair.real.scores for pair in shown.values()]
    generated = [pair.generated.scores for pair in shown.values()]
    low, high = _limits(np.concatenate([np.zeros(0), *real]), generated, threshold)
    typical = np.median([len(scores) for scores in generated]) if shown else 100
    bins = np.linspace(low, high, 1 + int(np.clip(2 * np.sqrt(typical), 12, 40)))
    figure, drawn = panels(len(shown), sharex=True, sharey=True)
    inner = 1.0
    for i, (axes, name) in enumerate(zip(drawn, shown, strict=True)):
        behind = _histogram(axes, real[i], bins, color=theme.real, alpha=0.55, label=f"{REAL} (n = {len(real[i])})")
        before = _histogram(axes, generated[i], bins, color=colour(i, theme), histtype="step", linewidth=2.2)
        inner = max(inner, behind.max(), before[1:-1].max())
        if threshold is not None and np.isfinite(threshold):
            axes.axvline(threshold, color=theme.text, linestyle="--", linewidth=1.5, label="threshold: flagged left")
        axes.set_title(f"{name} (n = {len(generated[i])})")
        axes.tick_params(labelbottom=True)
        axes.locator_params(axis="x", nbins=5)
        axes.set_xlabel(f"score, {unit}")
        label_left(axes, "share of each side, %")
    figure.suptitle(title)
    if drawn:
        # A side wholly beyond the range would otherwise flatten every panel; its bar may run out at the top.
        drawn[0].set_ylim(0, 1.12 * inner)
        figure.legend(*drawn[0].get_legend_handles_labels(), loc="outside lower center", ncols=2)
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
        style: dict[str, Any] = {"color": colour(i, theme), "marker": marker(i), "markersize": 6}
        axes.plot(
            steps,
            values[:, i],
            line(i, theme),
            markevery=(int(i) % every, every),
            label=f"{names[i]}  {last[i]:.3f}",
            **style,
        )
    axes.set(xlabel="training step", ylabel="task weight λ (no unit)", title="Weights that the outer loop learned")
    figure.legend(loc="outside right upper", title="task, weight at the end", handlelength=3)
    return figure


def _histogram(axes: Axes, scores: np.ndarray, bins: np.ndarray, **style: Any) -> np.ndarray:
    """Draws shares in % and returns them; what lies beyond the shown range is counted in the outermost bins."""
    clipped = np.clip(scores, bins[0], bins[-1])
    shares, *_ = axes.hist(clipped, list(bins), weights=np.full(len(clipped), 100 / max(1, len(clipped))), **style)
    return np.asarray(shares)


def _limits(real: np.ndarray, generated: Sequence[np.ndarray], threshold: float | None) -> tuple[float, float]:
    """Shown range: every side's 1% to 99%, but no side may squeeze the photographs into a few bins."""
    sides = [side for side in (real, *generated) if len(side)]
    if not sides:
        return 0.0, 1.0
    inner = np.quantile(real if len(real) else np.concatenate(sides), [0.01, 0.99])
    reach = 4 * max(inner[1] - inner[0], 1e-9)
    low = max(min(float(np.quantile(side, 0.01)) for side in sides), inner[0] - reach)
    high = min(max(float(np.quantile(side, 0.99)) for side in sides), inner[1] + reach)
    if threshold is not None and np.isfinite(threshold):
        low, high = min(low, threshold), max(high, threshold)
    margin = 0.02 * max(high - low, 1e-9)
    return low - margin, high + margin
