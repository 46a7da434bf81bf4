"""The figures of a data report."""

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from blades_dist.data.records import Manifest
from blades_dist.data.report_counts import Counts, Histogram
from blades_dist.report.figures import LIGHT, Plot, Theme, plot, themed
from blades_dist.tags import EXIF_TAGS
from blades_dist.tasks import ORDINAL_TAGS

UNITS = {tag.name: tag.unit for tag in EXIF_TAGS if tag.unit is not None}


def plots(counts: Counts, manifest: Manifest) -> list[Plot]:
    """Histograms of the raw ordinal values with the bin edges, and of crop sizes and JPEG qualities."""
    edges = manifest.ordinal_edges
    caption = (
        "Histograms of the raw values of the ordinal tags, logarithmic; dashed lines are the edges of low, medium "
    )
    caption += "and high. " + "; ".join(_said(tag, counts.raw[tag], edges.get(tag)) for tag in ORDINAL_TAGS) + "."
    sizes = f"Histograms of the crops' side ({_extent(counts.sides, 'pixels')}) and of the estimated JPEG quality of "
    sizes += f"their files ({_extent(counts.qualities, 'of 100')})."
    return [
        plot("ordinal", caption, plot_ordinal, counts, edges),
        plot("sizes", sizes, plot_sizes, counts.sides, counts.qualities),
    ]


@themed
def plot_ordinal(counts: Counts, edges: dict[str, tuple[float, float]], *, theme: Theme = LIGHT) -> Figure:
    """Raw values of every ordinal tag; ``edges`` where it has them."""
    rows = -(-len(ORDINAL_TAGS) // 2)
    figure = Figure(figsize=(9.5, 3.3 * rows), layout="constrained")
    for place, tag in enumerate(ORDINAL_TAGS, 1):
        axes = figure.add_subplot(rows, 2, place)
        _bars(axes, counts.raw[tag], f"{tag} (n = {counts.raw[tag].n})", UNITS[tag], theme, logarithmic=True)
        for edge in edges.get(tag, ()):
            axes.axvline(edge, color=theme.colours[1], linestyle="--", linewidth=1.8)
    return figure


@themed
def plot_sizes(sides: Histogram, qualities: Histogram, *, theme: Theme = LIGHT) -> Figure:
    """Sides of the crops and JPEG qualities."""
    figure = Figure(figsize=(9.5, 3.6), layout="constrained")
    left, right = figure.subplots(1, 2)
    _bars(left, sides, f"side of the crop (n = {sides.n})", "pixels", theme, logarithmic=True)
    _bars(right, qualities, f"JPEG quality (n = {qualities.n})", "estimated quality", theme, logarithmic=False)
    return figure


def _bars(axes: Axes, found: Histogram, title: str, unit: str, theme: Theme, logarithmic: bool) -> None:
    edges, counts = found.shown()
    axes.bar(edges[:-1], counts, np.diff(edges), align="edge", color=theme.colours[0], edgecolor=theme.paper)
    axes.set(title=title, ylabel="faces")
    axes.set_xlabel(unit)
    axes.locator_params(axis="y", integer=True)
    if not found.n:
        axes.text(0.5, 0.5, "no value", transform=axes.transAxes, ha="center")
    if logarithmic:
        axes.set_xscale("log")
        wide = edges[-1] > 50 * edges[0]
        axes.xaxis.set_major_locator(LogLocator(subs=(1.0,) if wide else (1.0, 2.0, 5.0), numticks=9))
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axes.xaxis.set_minor_formatter(NullFormatter())


def _said(tag: str, found: Histogram, edges: tuple[float, float] | None) -> str:
    levels = "no edges" if edges is None else f"edges at {edges[0]:g} and {edges[1]:g}"
    return f"{tag}: {_extent(found, UNITS[tag])}, {levels}"


def _extent(found: Histogram, unit: str) -> str:
    return f"{found.low:g} to {found.high:g} {unit}" if found.n else "no value"
