"""Detectors on a test set whose both sides went through compression, resizing, noise and the like.

Pictures are perturbed and encoded by the same Ray Data job as everywhere (``detect.extract``), which keeps what it has
computed: a grid that was killed goes on where it was.
"""

import datetime
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from blades_dist.config import RobustnessConfig
from blades_dist.detect.bundle import load_detector
from blades_dist.detect.detector import Detector
from blades_dist.detect.extract import Request, compute, extract
from blades_dist.evaluate import grid_report
from blades_dist.evaluate.answers import Answers, Pair
from blades_dist.evaluate.assess import assess
from blades_dist.evaluate.inputs import EvaluationError, check_set, named
from blades_dist.evaluate.remarks import simulated, versions
from blades_dist.evaluate.scoring import SPLIT, TestSet, about, answers, rows_of
from blades_dist.files import write_atomically
from blades_dist.perturb import GRID

Say = Callable[[str], None]


@dataclass(frozen=True)
class Work:
    """Everything that cells are computed from."""

    config: RobustnessConfig
    detectors: dict[str, Detector]
    rows: Mapping[str, tuple[str, ...]]

    def views(self, name: str, spec: str) -> list[str]:
        """The picture under ``spec``, then that picture after each of the detector's re-encodings."""
        others = self.detectors[name].info.preprocessing.re_encodings if self.config.unsure else ()
        return [spec, *(f"{spec}+{other}" if spec else other for other in others)]

    def request(self, name: str, folder: Path, view: str) -> Request:
        return Request(self.config.detectors[name], folder, SPLIT, view, self.config.limit)

    def requests(self) -> list[Request]:
        """Of all cells."""
        sides = (self.config.shards, self.config.generated)
        specs = [spec for family in self.rows.values() for spec in family]
        return [
            self.request(name, folder, view)
            for name in self.detectors
            for spec in specs
            for view in self.views(name, spec)
            for folder in sides
        ]


def robustness(config: RobustnessConfig, say: Say = print, work: Work | None = None) -> Path:
    """Measures the grid and writes robustness.html, .csv, .json and .md to ``config.output``; returns the page's path.

    Needs a connection to Ray. ``say`` gets lines of progress; ``work`` is that of ``open_work``, opened here when it
    was not before.

    Raises:
        EvaluationError: a bundle or shard set is missing, damaged or of the wrong kind, or a row is not known.
    """
    work = work or open_work(config)
    named("shards or generated", partial(compute, work.requests(), config.extract, say))
    cells = {}
    for family, specs in work.rows.items():
        for spec in specs:
            for name in work.detectors:
                cells[spec, name] = _cell(work, name, spec, say)
        say(f"measured {family}")
    people = about(TestSet(config.shards, config.generated))
    origin = simulated((config.shards, config.generated), people)
    grid = grid_report.Grid(
        detectors=tuple(work.detectors),
        rows=work.rows,
        cells=cells,
        confidence=config.confidence,
        created=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        remarks=(f"Measured on SIMULATED data ({origin}).",) if origin else (),
        config=config.model_dump(mode="json"),
        versions=versions(),
    )
    return _write(grid, config.output)


def open_work(config: RobustnessConfig) -> Work:
    """Loads everything that can be missing or wrong; the unchanged pictures become the first row.

    Raises:
        EvaluationError: as ``robustness``.
    """
    unknown = sorted(set(config.rows or ()) - set(GRID))
    if unknown:
        raise EvaluationError(f"rows: {', '.join(unknown)} are not in the grid; it has: {', '.join(GRID)}")
    named("shards", partial(check_set, config.shards, "photographs"))
    named("generated", partial(check_set, config.generated, "generated"))
    detectors = {
        name: named(f"detectors.{name}", partial(load_detector, folder)) for name, folder in config.detectors.items()
    }
    kept = {name: specs for name, specs in GRID.items() if config.rows is None or name in config.rows}
    return Work(config, detectors, {grid_report.CLEAN: ("",), **kept})


def _cell(work: Work, name: str, spec: str, say: Say) -> grid_report.Cell:
    config = work.config
    real, generated = (_side(work, name, folder, spec, say) for folder in (config.shards, config.generated))
    pairs = {
        source: Pair(real[0], rows_of(generated[0], np.flatnonzero(generated[1] == source)))
        for source in sorted(set(generated[1]))
    }
    return grid_report.cell(assess(pairs, config.bootstrap, config.confidence, config.seed), config.confidence)


def _side(work: Work, name: str, folder: Path, spec: str, say: Say) -> tuple[Answers, np.ndarray]:
    """Answers on one side, and the sources of its faces."""
    detector, (plain, *others) = work.detectors[name], work.views(name, spec)
    found = extract([work.request(name, folder, view) for view in (plain, *others)], work.config.extract, say)
    scores = [detector.score(part.features) for part in found]
    re_encoded = dict(zip(detector.info.preprocessing.re_encodings, scores[1:], strict=bool(others)))
    given = answers(scores[0], re_encoded, detector.calibration, detector.probability(scores[0]))
    return given, np.array(found[0].sources)


def _write(grid: grid_report.Grid, folder: Path) -> Path:
    texts = {
        "robustness.json": json.dumps(grid_report.results(grid), indent=1, allow_nan=False) + "\n",
        "robustness.md": grid_report.to_markdown(grid),
        "robustness.csv": grid_report.to_csv(grid),
        "robustness.html": grid_report.to_html(grid),
    }
    for name, text in texts.items():
        write_atomically(folder / name, text)
    print(grid_report.summary(grid))
    print(f"report: {folder / 'robustness.html'}", flush=True)
    return folder / "robustness.html"
