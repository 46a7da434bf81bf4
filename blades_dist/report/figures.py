"""How figures look, and how they come into a page; drawn without pyplot: no window, no global state, nothing to close.

Colours are those of Okabe and Ito (2008), told apart by colour-blind readers.
"""

import io
from collections.abc import Callable
from dataclasses import dataclass
from functools import wraps
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

Panels = tuple[Figure, list[Axes]]


@dataclass(frozen=True)
class Theme:
    """``colours`` are for generators and tasks in turn, ``real`` is the photographs' grey."""

    text: str
    faint: str
    paper: str
    real: str
    colours: tuple[str, ...]


_OKABE_ITO = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#8C6D31")
_LIGHTENED = ("#4DA3DC", "#F0803C", "#2CC295", "#E39BC4", "#F2B53A", "#A9DBF7", "#C4A15C")
_LINES = ("-", "--", ":", "-.")
_MARKERS = ("s", "^", "D", "v", "P", "X", "*")
LIGHT = Theme("#1b1f24", "#d5d9de", "#ffffff", "#6b7280", _OKABE_ITO)
DARK = Theme("#e8eaed", "#3a4049", "#16191d", "#a3abb5", _LIGHTENED)


def themed(draw: Callable[..., Figure]) -> Callable[..., Figure]:
    """Draws under the theme's settings and leaves matplotlib's own as they were."""

    @wraps(draw)
    def in_theme(*args: Any, theme: Theme = LIGHT, **options: Any) -> Figure:
        inked = ("text.color", "axes.labelcolor", "axes.edgecolor", "xtick.color", "ytick.color", "axes.titlecolor")
        settings: dict[str, Any] = {key: theme.text for key in inked}
        settings |= {"figure.facecolor": theme.paper, "axes.facecolor": theme.paper, "savefig.facecolor": theme.paper}
        settings |= {"legend.facecolor": theme.paper, "legend.edgecolor": theme.faint, "grid.color": theme.faint}
        settings |= {"font.size": 12, "axes.titlesize": 13, "axes.grid": True, "axes.axisbelow": True}
        settings |= {"axes.spines.top": False, "axes.spines.right": False, "lines.linewidth": 2, "legend.fontsize": 11}
        with matplotlib.rc_context(settings):
            return draw(*args, theme=theme, **options)

    return in_theme


def colour(index: int, theme: Theme) -> str:
    """Colour of the ``index``-th of several things in one figure."""
    return theme.colours[index % len(theme.colours)]


def line(index: int, theme: Theme) -> str:
    """Line style of the ``index``-th thing: another one whenever the colours repeat."""
    return _LINES[index // len(theme.colours) % len(_LINES)]


def marker(index: int) -> str:
    """Marker of the ``index``-th thing; shifted once a round of the colours, so that no two share both."""
    return _MARKERS[(index + index // len(_MARKERS)) % len(_MARKERS)]


def panels(count: int, columns: int = 3, width: float = 4.3, height: float = 3.1, **options: Any) -> Panels:
    """A figure with ``count`` panels of ``width`` x ``height`` inches in rows, and those panels."""
    columns = max(1, min(columns, count))
    rows = max(1, -(-count // columns))
    figure = Figure(figsize=(max(6.5, width * columns), height * rows + 1.1), layout="constrained")
    made = figure.subplots(rows, columns, squeeze=False, **options)
    for axes in made.flat[count:]:
        axes.set_axis_off()
    return figure, list(made.flat[:count])


def label_left(axes: Axes, text: str) -> None:
    """Names the vertical axis of a panel in the first column, which its row shares."""
    place = axes.get_subplotspec()
    if place is not None and place.is_first_col():
        axes.set_ylabel(text)


def png(figure: Figure, dots_per_inch: int = 110) -> bytes:
    """The figure as a PNG file."""
    out = io.BytesIO()
    FigureCanvasAgg(figure)
    figure.savefig(out, format="png", dpi=dots_per_inch, metadata={"Software": ""})
    return out.getvalue()


@dataclass(frozen=True)
class Plot:
    """A figure as PNG files for light and dark pages; ``width`` and ``height`` in CSS pixels.

    ``detector`` names whose it is, None: it belongs to none of them alone.
    """

    name: str
    caption: str
    light: bytes
    dark: bytes
    width: int
    height: int
    detector: str | None = None


def plot(name: str, caption: str, draw: Callable[..., Figure], *args: Any, detector: str | None = None) -> Plot:
    """What ``draw`` (see ``themed``) makes of ``args``, in both themes."""
    light, dark = (draw(*args, theme=theme) for theme in (LIGHT, DARK))
    width, height = (round(96 * inches) for inches in light.get_size_inches())
    return Plot(name, caption, png(light), png(dark), width, height, detector)
