"""The robustness grid on one page: every detector on every perturbation, as heatmaps, CSV, JSON and Markdown."""

import math
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from functools import partial
from typing import Any

import matplotlib

from blades_dist.evaluate.assess import Assessment
from blades_dist.evaluate.parity import Audit
from blades_dist.evaluate.rates import Estimate
from blades_dist.evaluate.report import audit_results
from blades_dist.evaluate.table_formats import COUNTS, NUMBERS, images, numbers, show
from blades_dist.report.page import render, without_nan
from blades_dist.report.tables import ABSENT, Table, TableRow

SCHEMA_VERSION = 1
CLEAN = "unchanged"
MEASURES = {
    "accuracy": "Balanced accuracy, mean over generators, %",
    "auc": "AUC, mean over generators, %",
    "unsure": "Unsure, mean of both sides, %",
}
NOTE = (
    "Every picture of both sides was perturbed alike before the detector saw it. Thresholds and p-values are those of "
    "the clean calibration: nothing was adapted to a perturbation. Accuracy is that of the score alone."
)
_WORST = {"accuracy": 0.5, "auc": 0.5, "unsure": 1.0}  # where the colour scale ends; it begins at the best value


@dataclass(frozen=True)
class Cell:
    """One detector under one perturbation; fractions, each a mean over generators and balanced between the sides."""

    accuracy: Estimate
    auc: Estimate
    unsure: Estimate


@dataclass(frozen=True)
class Grid:
    """A robustness grid; what is missing from ``cells`` was not measured and is shown so.

    Attributes:
        detectors: names, the main one first.
        rows: perturbation family to its specs, mildest first; the unchanged pictures are the spec "".
        cells: by spec and detector.
        confidence: of all intervals.
        caveats: what to know before trusting the numbers, such as that the data are simulated; shown second.
        created, config, versions: as in an evaluation.
        audit: of the containers of the unchanged pictures, shown first; None: there was none.

    Raises:
        ValueError: a cell of a spec or detector that the grid does not name, or a spec named twice.
    """

    detectors: tuple[str, ...]
    rows: Mapping[str, tuple[str, ...]]
    cells: Mapping[tuple[str, str], Cell]
    confidence: float
    created: str
    caveats: tuple[str, ...] = ()
    config: dict[str, Any] = field(default_factory=dict)
    versions: dict[str, str] = field(default_factory=dict)
    audit: Audit | None = None

    def __post_init__(self) -> None:
        specs = [spec for family in self.rows.values() for spec in family]
        if len(set(specs)) < len(specs):
            raise ValueError(f"robustness grid: {sorted({s for s in specs if specs.count(s) > 1})} are named twice")
        for spec, detector in self.cells:
            if spec not in specs or detector not in self.detectors:
                raise ValueError(f"robustness grid: {spec!r} of {detector!r} has numbers but no place in the grid")


def cell(assessment: Assessment, confidence: float = 0.95) -> Cell:
    """The three numbers that the grid shows of an assessment."""
    return Cell(assessment.mean_accuracy, assessment.ranked["AUC"].mean(confidence), assessment.mean_unsure)


def to_html(grid: Grid) -> str:
    """One page that needs nothing but itself and runs no script: a heatmap a measure, detectors side by side."""
    tables = {measure: heat_table(grid, measure) for measure in MEASURES}
    return render(
        "blades_dist.evaluate",
        "grid.html.j2",
        g=grid,
        measures=MEASURES,
        note=NOTE,
        summary=summary(grid),
        tables=tables,
        scale=_scale(),
    )


def heat_table(grid: Grid, measure: str) -> Table:
    """One measure of every detector under every perturbation; what was not measured is not available."""
    rows = []
    for family, specs in grid.rows.items():
        for spec in specs:
            found = [getattr(grid.cells.get((spec, name)), measure, _NOTHING) for name in grid.detectors]
            most = max(found, key=lambda one: one.n_real + one.n_generated)
            n = ABSENT if most is _NOTHING else images(most)
            rows.append(TableRow(spec or CLEAN, tuple(found), n=n, group=family))
    return Table(
        MEASURES[measure],
        grid.detectors,
        tuple(rows),
        labels="perturbation",
        groups="family",
        counts=COUNTS,
        key=f"heat-{measure}",
        style="heat",
        text=lambda found, _: show(found, percent=True),
        shade=partial(_shade, measure=measure),
    )


def summary(grid: Grid) -> str:
    """The main detector's AUC on unchanged pictures and where it is lowest, in a sentence."""
    main = grid.detectors[0]
    known = {spec: found.auc for (spec, name), found in grid.cells.items() if name == main}
    known = {spec: auc for spec, auc in known.items() if not math.isnan(auc.value)}
    changed = [spec for spec in known if spec]
    if not changed:
        return f"{main}: no perturbation was measured"
    lowest = min(changed, key=lambda spec: known[spec].value)
    clean = f" {show(known[''])} on {CLEAN} pictures," if "" in known else ""
    return f"{main}: AUC{clean} {show(known[lowest])} at its lowest ({lowest})"


def to_csv(grid: Grid) -> str:
    """One line a number (family, perturbation, detector, measure, value, low, high, n_real, n_generated), fractions."""
    rows = [
        TableRow(family, (spec, detector, measure, *numbers(getattr(found, measure))))
        for family, spec, detector, found in _all(grid)
        if found
        for measure in MEASURES
    ]
    return Table("", ("perturbation", "detector", "measure", *NUMBERS), tuple(rows), labels="family").to_csv()


def to_markdown(grid: Grid) -> str:
    """One table a measure, with the notes."""
    first = [f"{grid.audit.verdict()}\n"] if grid.audit else []
    parts = [*first, f"{summary(grid)}\n", *(f"{caveat}\n" for caveat in grid.caveats), f"{NOTE}\n"]
    return "\n".join([*parts, *(heat_table(grid, measure).to_markdown() for measure in MEASURES)])


def results(grid: Grid) -> dict[str, Any]:
    """All numbers as fractions, unrounded; null where one is not defined. Plain JSON types only."""
    cells = [
        {"family": family, "perturbation": spec, "detector": detector, **asdict(found)}
        for family, spec, detector, found in _all(grid)
        if found
    ]
    plain = {
        "schema_version": SCHEMA_VERSION,
        "created": grid.created,
        "summary": summary(grid),
        "confidence": grid.confidence,
        "audit": audit_results(grid.audit) if grid.audit else None,
        "remarks": list(grid.caveats),
        "note": NOTE,
        "detectors": list(grid.detectors),
        "rows": {family: list(specs) for family, specs in grid.rows.items()},
        "cells": cells,
        "config": grid.config,
        "versions": grid.versions,
    }
    return without_nan(plain)


_NOTHING = Estimate(math.nan, math.nan, math.nan, 0, 0)


def _all(grid: Grid) -> Iterator[tuple[str, str, str, Cell | None]]:
    for family, specs in grid.rows.items():
        for spec in specs:
            for detector in grid.detectors:
                yield family, spec, detector, grid.cells.get((spec, detector))


def _shade(found: Estimate, measure: str) -> str:
    """The colour of a cell of the heatmap, with ink that reads on it in any theme."""
    worst = _WORST[measure]
    share = (found.value - worst) / (0.0 - worst if measure == "unsure" else 1.0 - worst)
    background, ink = _colour(min(1.0, max(0.0, share)))
    return f"background:{background};color:{ink}"


def _colour(share: float) -> tuple[str, str]:
    """Background from cividis (Nuñez et al., PLoS ONE 2018), dark = worst, and the ink with more contrast on it."""
    red, green, blue, _ = matplotlib.colormaps["cividis"](share)
    linear = [x / 12.92 if x <= 0.04045 else ((x + 0.055) / 1.055) ** 2.4 for x in (red, green, blue)]
    luminance = 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]  # WCAG 2
    return matplotlib.colors.to_hex((red, green, blue)), "#000000" if luminance > 0.179 else "#ffffff"


def _scale() -> list[tuple[str, str]]:
    return [_colour(i / 10) for i in range(11)]
