"""Figures that show all detectors side by side: ROC curves, reliability, p-values against what they promise."""

from collections.abc import Mapping

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter

from blades_dist.detect.calibrate import STANDARD_FPRS
from blades_dist.evaluate.assess import Assessment, photographs
from blades_dist.evaluate.calibration_error import measured_fpr
from blades_dist.evaluate.ranking import roc, roc_counts
from blades_dist.evaluate.table_formats import show
from blades_dist.report.figures import LIGHT, Theme, colour, label_left, line, marker, panels, themed

_GRID = np.linspace(0, 1, 501)  # false-positive rates at which curves are averaged
_NOMINAL = np.geomspace(1e-3, 1, 121)


@themed
def plot_all_roc(assessments: Mapping[str, Assessment], confidence: float = 0.95, *, theme: Theme = LIGHT) -> Figure:
    """One panel a generator with one curve a detector, and one with the curves' mean over generators.

    Mean curves are averages of the true-positive rates at equal false-positive rates.
    """
    first = next(iter(assessments.values()))
    shown = [name for name, pair in first.pairs.items() if len(pair.real) and len(pair.generated)]
    figure, drawn = panels(len(shown) + (len(shown) > 1), width=4.2, height=4.0, sharex=True, sharey=True)
    for i, found in enumerate(assessments.values()):
        curves = []
        for axes, generator in zip(drawn, shown, strict=False):
            pair = found.pairs[generator]
            fpr, tpr = (side[0] for side in roc(*roc_counts(pair.real.scores, pair.generated.scores)))
            axes.plot(100 * fpr, 100 * tpr, line(i, theme), color=colour(i, theme))
            curves.append(np.interp(_GRID, fpr, tpr))
        if len(shown) > 1:
            mean = 100 * np.mean(curves, axis=0)
            drawn[-1].plot(np.r_[0, 100 * _GRID], np.r_[0, mean], line(i, theme), color=colour(i, theme))
    titles = [f"{name} (n = {len(first.pairs[name].generated)})" for name in shown]
    for axes, title in zip(drawn, [*titles, "mean over generators"], strict=False):
        axes.plot([0, 100], [0, 100], color=theme.faint, linewidth=1.5, zorder=0)
        axes.set(xlim=(-1, 101), ylim=(-1, 101), title=title)
        axes.set_aspect("equal")
        axes.set_xlabel(f"FPR, % of {first.n_real}")
        axes.tick_params(labelbottom=True)
        label_left(axes, "TPR, %")
    figure.suptitle("ROC of all detectors")
    labels = [f"{name}: {show(found.ranked['AUC'].mean(confidence))}" for name, found in assessments.items()]
    handles = (
        [figure.axes[0].plot([], [], line(i, theme), color=colour(i, theme))[0] for i in range(len(assessments))]
        if figure.axes
        else []
    )
    figure.legend(handles, labels, loc="outside lower center", ncols=2, title="mean AUC over generators")
    return figure


@themed
def plot_reliability(assessments: Mapping[str, Assessment], *, theme: Theme = LIGHT) -> Figure:
    """One panel a detector with a probability: observed against predicted share, weights of bins below."""
    shown = {name: a.reliability for name, a in assessments.items() if a.reliability is not None}
    figure, drawn = panels(len(shown), width=4.2, height=4.1, sharex=True, sharey=True)
    index = list(assessments)
    for axes, (name, found) in zip(drawn, shown.items(), strict=True):
        tint = colour(index.index(name), theme)
        edges = np.linspace(0, 100, len(found.weight) + 1)
        axes.bar(
            edges[:-1], 100 * np.nan_to_num(found.weight), np.diff(edges), align="edge", color=theme.real, alpha=0.4
        )
        axes.plot([0, 100], [0, 100], color=theme.text, linewidth=1, linestyle=":")
        known = ~np.isnan(found.observed)
        x, y = 100 * found.predicted[known], 100 * found.observed[known]
        reach = [np.maximum(0, y - 100 * found.low[known]), np.maximum(0, 100 * found.high[known] - y)]
        axes.errorbar(
            x, y, reach, color=tint, marker=marker(index.index(name)), markersize=6, elinewidth=1.4, linewidth=1.2
        )
        axes.set(xlim=(-2, 102), ylim=(-2, 102), title=f"{name}\nECE {show(found.ece, percent=True)} %")
        axes.tick_params(labelbottom=True)
        axes.set_xlabel("probability of AI-generated, %")
        label_left(axes, "generated among them, %")
    figure.suptitle("Reliability of probabilities; grey: share of images in the bin, %")
    return figure


@themed
def plot_p_values(assessments: Mapping[str, Assessment], confidence: float = 0.95, *, theme: Theme = LIGHT) -> Figure:
    """One panel a detector with p-values: measured against nominal false-positive rate, with Wilson's band."""
    index = list(assessments)
    shown = {name: a for name, a in assessments.items() if a.p_error is not None}
    figure, drawn = panels(len(shown), width=4.2, height=4.1, sharex=True, sharey=True)
    floor = 100 * _NOMINAL[0] / 2
    for axes, (name, found) in zip(drawn, shown.items(), strict=True):
        p_values = [one.p_values for one in photographs(found.pairs) if one.p_values is not None]
        rates = [measured_fpr(p_values, level, confidence) for level in _NOMINAL]
        low, value, high = (
            np.maximum(floor, [100 * getattr(rate, field) for rate in rates]) for field in ("low", "value", "high")
        )
        tint = colour(index.index(name), theme)
        axes.fill_between(100 * _NOMINAL, low, high, color=tint, alpha=0.25, linewidth=0)
        axes.plot(100 * _NOMINAL, value, color=tint)
        axes.plot([100 * _NOMINAL[0], 100], [100 * _NOMINAL[0], 100], color=theme.text, linewidth=1, linestyle=":")
        points = [max(floor, 100 * found.fpr[level].value) for level in STANDARD_FPRS]
        axes.plot([100 * level for level in STANDARD_FPRS], points, "o", color=tint, markersize=7, clip_on=False)
        error = show(found.p_error, percent=True) if found.p_error else ""
        axes.set(xscale="log", yscale="log", title=f"{name}\nlargest error {error} %")
        axes.set(xlim=(0.9 * 100 * _NOMINAL[0], 110), ylim=(floor, 110))
        axes.tick_params(labelbottom=True)
        for axis in (axes.xaxis, axes.yaxis):
            axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axes.set_xlabel(f"nominal FPR, %  (n = {found.n_real})")
        label_left(axes, "measured FPR, %")
    figure.suptitle("P-values on photographs: measured against nominal false-positive rate")
    return figure
