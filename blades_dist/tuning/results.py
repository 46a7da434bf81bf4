"""What a sweep has found as files in its folder: tables for people and programs, plots, and one page of it all."""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure

from blades_dist.evaluate.table_formats import show
from blades_dist.files import write_atomically
from blades_dist.report.figures import LIGHT, Plot, Theme, colour, panels, plot, themed
from blades_dist.report.page import render, without_nan
from blades_dist.report.tables import Table, plain
from blades_dist.tuning.compare import Comparison
from blades_dist.tuning.config import SweepConfig, defaults
from blades_dist.tuning.detectors import Row
from blades_dist.tuning.importance import Importance, importances
from blades_dist.tuning.ledger import DEFAULT, Ledger
from blades_dist.tuning.space import Dimension

_BAND = 0.06  # of an axis: how far lines of one choice are spread


@themed
def plot_parallel(
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
def plot_importances(found: Sequence[Importance], theme: Theme = LIGHT) -> Figure:
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


TABLE, PAGE, RESULT = "table.md", "summary.html", "sweep.json"
_TOP = 15  # detector trials in the table for people; the CSV has all


@dataclass(frozen=True)
class SweepResult:
    """All that is told: the ``best`` detector trial, and the bundle made of it."""

    config: SweepConfig
    ledger: Ledger
    rows: list[Row]
    best: Row
    comparison: Comparison
    bundle: Path


def write_results(result: SweepResult) -> Path:
    """Writes ``table.md``, ``encoders.csv``, ``detectors.csv``, ``sweep.json``, ``parallel_*.png``, ``importance.png``
    and ``summary.html`` into the sweep's folder; returns the page."""
    folder = result.config.folder
    weights = importances(result.config, result.ledger, result.rows)
    encoders = encoder_records(result)
    comparison = Table.of_records(comparison_records(result.comparison), "The best against the default")
    encoder_table = Table.of_records(encoders, "Encoder runs")
    top = Table.of_records(_top(result.rows), f"Best {_TOP} detector trials")
    write_atomically(folder / "encoders.csv", encoder_table.to_csv())
    write_atomically(folder / "detectors.csv", Table.of_records(detector_records(result.rows)).to_csv())
    write_atomically(folder / TABLE, markdown(result, [comparison, encoder_table, top], weights))
    drawn = plots(result, weights)
    for one in drawn:
        write_atomically(folder / f"{one.name}.png", one.light)
    content = {
        "best": asdict(result.best),
        "encoder": _values(result, result.best.candidate),
        "bundle": str(result.bundle),
        "comparison": result.comparison.as_json(),
        "importance": [asdict(one) for one in weights],
        "encoders": encoders,
        "detectors": [asdict(row) for row in result.rows],
        "config": result.config.model_dump(mode="json"),
    }
    write_atomically(folder / RESULT, json.dumps(without_nan(content), indent=1))
    html = render(
        "blades_dist.tuning",
        "sweep.html.j2",
        name=result.config.name,
        verdict=result.comparison.verdict(),
        beats=result.comparison.beats,
        comparison=comparison,
        encoders=encoder_table,
        detectors=top,
        best=[*_values(result, result.best.candidate).items(), *result.best.values.items(), ("bundle", result.bundle)],
        plots=drawn,
        config=result.config.model_dump(mode="json"),
    )
    write_atomically(folder / PAGE, html)
    return folder / PAGE


def encoder_records(result: SweepResult) -> list[dict[str, Any]]:
    """A row a run."""
    rows = []
    for run in result.ledger.runs.values():
        row: dict[str, Any] = {"run": run.name, "state": run.state, "steps": run.reports[-1][0] if run.reports else 0}
        row["coarse AUC"] = run.reports[-1][1] if run.reports else None
        row["objective"] = run.score
        rows.append({**row, **_values(result, run.candidate)})
    return rows


def detector_records(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """A row a trial."""
    keys = list(dict.fromkeys(key for row in rows for key in row.values))
    terms = list(dict.fromkeys(key for row in rows for key in row.terms))
    return [
        {
            "candidate": f"c{row.candidate:03d}",
            "trial": row.number,
            "objective": row.score,
            **{key: row.terms.get(key) for key in terms},
            **{key: row.values.get(key, "") for key in keys},
            "seconds": row.seconds,
            "error": row.error,
        }
        for row in rows
    ]


def comparison_records(comparison: Comparison) -> list[dict[str, Any]]:
    """A row a contestant."""
    rows = []
    for i, one in enumerate(comparison.contestants):
        row: dict[str, Any] = {"configuration": one.name, "mean AUC": show(one.mean)}
        row |= {name: show(own) for name, own in one.auc.items()} if len(one.auc) > 1 else {}
        row |= {"nominal FPR": f"{one.nominal_fpr:g}", "FPR": f"{one.fpr:.3f}", "TPR": f"{one.tpr:.3f}"}
        gap, p = comparison.differences[i - 1] if i else (None, None)
        row["difference"] = show(gap, signed=True) if gap else ""
        row["p"] = f"{p:.2g}" if p is not None else ""
        rows.append(row)
    return rows


def markdown(result: SweepResult, tables: Sequence[Table], weights: Sequence[Importance]) -> str:
    """The tables (comparison, encoder runs, best detector trials) for people, with importances."""
    states = [run.state for run in result.ledger.runs.values()]
    counted = ", ".join(f"{states.count(state)} {state}" for state in ("finished", "stopped", "failed"))
    comparison = result.comparison
    others = ", ".join(f"{count} {name}" for name, count in comparison.others.items())
    shares = [
        Table.of_records(
            [{"key": key, "share": share} for key, share in one.shares.items()],
            f"Importance for the {one.of} (fANOVA, n = {one.trials})",
        )
        for one in weights
    ]
    parts = [
        f"# Sweep {result.config.name}\n",
        f"{len(states)} encoder runs ({counted}), {len(result.rows)} detector trials.\n",
        f"**{comparison.verdict()}**\n",
        f"Test split: {comparison.photographs} photographs; {others}. Means over {len(result.best.by_seed)} seed(s); "
        "95% intervals by bootstrap over faces, not over seeds.\n",
        tables[0].to_markdown(),
        f"## Best\n\nEncoder c{result.best.candidate:03d}: {_listed(_values(result, result.best.candidate))}\n\n"
        f"Detector: {_listed(result.best.values)}\n\nBundle: `{result.bundle.name}/`\n",
        *(table.to_markdown() for table in (*tables[1:], *shares)),
    ]
    return "\n".join(parts)


def plots(result: SweepResult, weights: Sequence[Importance]) -> list[Plot]:
    """Both levels as parallel coordinates, and importance."""
    drawn = []
    points, dashed = [], []
    for number in result.ledger.candidates:
        runs, values = result.ledger.of(number), _values(result, number)
        inside = all(space.contains(values[key]) for key, space in result.config.encoders.space.items())
        if runs and runs[0].reports and inside:
            points.append((values, runs[0].reports[-1][1]))
            dashed.append(runs[0].state != "finished")
    if points:
        caption = "Encoder configurations by the coarse AUC of their last read-out; dashed: stopped early."
        space = result.config.encoders.space
        drawn.append(plot("parallel_encoders", caption, plot_parallel, points, space, "coarse AUC", dashed))
    tried = [(row.values, row.score) for row in result.rows if row.score is not None]
    caption = "Detector trials by their objective; a key that a detector's kind does not have breaks its line."
    drawn.append(plot("parallel_detectors", caption, plot_parallel, tried, result.config.detectors.space, "objective"))
    if weights:
        caption = "How much of the variance over trials each key accounts for (fANOVA); few trials say little."
        drawn.append(plot("importance", caption, plot_importances, weights))
    return drawn


def _values(result: SweepResult, candidate: int) -> dict[str, Any]:
    if candidate == DEFAULT:
        return defaults(result.config.pretrain, result.config.encoders.space)
    return result.ledger.candidates[candidate].values


def _top(rows: Sequence[Row]) -> list[dict[str, Any]]:
    best = sorted((row for row in rows if row.score is not None), key=lambda row: -(row.score or 0.0))[:_TOP]
    dropped = ("seconds", "error")
    return [{key: value for key, value in row.items() if key not in dropped} for row in detector_records(best)]


def _listed(values: dict[str, Any]) -> str:
    return ", ".join(f"`{key}={plain(value) or 'null'}`" for key, value in values.items()) or "the default"
