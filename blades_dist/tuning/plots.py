"""Parallel coordinates of trials, and bars of importance."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure

from blades_dist.figures import LIGHT, Theme, colour, panels, themed
from blades_dist.tuning.importance import Importance
from blades_dist.tuning.space import Dimension

_BAND = 0.06  # of an axis: how far lines of one choice are spread


@themed
def parallel(
    points: Sequence[tuple[Mapping[str, Any], float]],
    space: Mapping[str, Dimension],
    label: str,
    dashed: Sequence[bool] = (),
    theme: Theme = LIGHT,
) -> Figure:
    """One line a trial over one axis a key, coloured by its value and drawn over by better ones.

    A key that a trial does not have breaks its line. ``dashed`` marks trials that were stopped early.
    """
    keys = list(space)
    figure = Figure(figsize=(max(6.5, 1.5 * len(keys) + 1.5), 4.6), layout="constrained")
    axes = figure.subplots()
    values = np.array([value for _, value in points], float)
    norm = Normalize(float(values.min()), float(values.max()) + 1e-12)
    shades = matplotlib.colormaps["viridis"]
    for i in np.argsort(values):
        heights = [_height(space[key], points[i][0][key], int(i)) if key in points[i][0] else math.nan for key in keys]
        style = "--" if dashed and dashed[i] else "-"
        width = 2.4 if i == int(values.argmax()) else 1.0
        axes.plot(heights, style, color=shades(norm(values[i])), linewidth=width, alpha=0.8, marker=".", markersize=4)
    _axes(axes, space, keys, theme)
    figure.colorbar(ScalarMappable(norm, shades), ax=axes, label=label, pad=0.02)
    return figure


@themed
def bars(found: Sequence[Importance], theme: Theme = LIGHT) -> Figure:
    """A panel of bars each."""
    figure, places = panels(len(found), columns=2, width=5.2, height=2.9)
    for i, (axes, one) in enumerate(zip(places, found, strict=True)):
        order = sorted(one.shares, key=lambda key: one.shares[key])
        axes.barh(order, [one.shares[key] for key in order], color=colour(i, theme))
        axes.set_xlim(0, 1)
        axes.set_xlabel("share of variance")
        axes.set_title(f"{one.of} (n = {one.trials})")
    return figure


def _height(dimension: Dimension, value: Any, place: int) -> float:
    """Where a value lies on its axis, 0..1."""
    if dimension.choices is not None:
        at = [repr(choice) for choice in dimension.choices].index(repr(value)) / (len(dimension.choices) - 1)
        return at + _BAND * ((place * 0.618) % 1 - 0.5)  # golden ratio: an even spread, the same at every drawing
    low, high, own = (math.log(x) if dimension.log else float(x) for x in (*map(_number, dimension.ends()), value))
    return (own - low) / (high - low)


def _number(value: Any) -> float:
    return float(value)


def _axes(axes: Axes, space: Mapping[str, Dimension], keys: Sequence[str], theme: Theme) -> None:
    for i, key in enumerate(keys):
        axes.axvline(i, color=theme.faint, linewidth=1, zorder=0)
        ends = space[key].ends()
        marks = enumerate(ends) if space[key].choices is not None else ((0, ends[0]), (len(ends) - 1, ends[-1]))
        for place, value in marks:
            text = f"{value:g}" if isinstance(value, (int, float)) and not isinstance(value, bool) else str(value)
            axes.annotate(
                text, (i, place / (len(ends) - 1)), (4, 0), textcoords="offset points", fontsize=9, va="center"
            )
    axes.set_xticks(range(len(keys)), [key.replace("bilevel.initial.", "initial ") for key in keys])
    axes.tick_params(axis="x", labelrotation=25)
    axes.set_yticks([])
    axes.grid(False)
    axes.set_ylim(-0.08, 1.08)
    axes.set_xlim(-0.3, len(keys) - 0.4)
    axes.spines["left"].set_visible(False)
