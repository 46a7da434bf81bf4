"""Detectors on a test set whose both sides went through compression, resizing, noise and the like.

Pictures are perturbed and encoded by the same Ray Data job as everywhere (``detect.extract``), which keeps what it has
computed: a grid that was killed goes on where it was.
"""

import datetime
import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from blades_dist.config import RobustnessConfig
from blades_dist.detect.extract import Request, compute, extract
from blades_dist.detect.features import FeatureSet
from blades_dist.evaluate import grid_report, parity
from blades_dist.evaluate.assess import assess
from blades_dist.evaluate.candidates import CandidateDetector, LoadedBundle, open_candidate
from blades_dist.evaluate.caveats import library_versions, seen_in_training, simulated
from blades_dist.evaluate.inputs import EvaluationError, check_set, named
from blades_dist.evaluate.predictions import Pair, Predictions
from blades_dist.evaluate.scoring import SPLIT, TestSet, encoder_of, index_faces, index_testset, predict, rows_of
from blades_dist.files import write_atomically
from blades_dist.perturb import GRID
from blades_dist.progress import Say


@dataclass(frozen=True)
class Work:
    """Everything that cells are computed from; ``sources`` (n,) says who made the generated faces, in stored order."""

    config: RobustnessConfig
    candidates: dict[str, CandidateDetector]
    rows: Mapping[str, tuple[str, ...]]
    sources: np.ndarray

    @property
    def generators(self) -> list[str]:
        """Their names, in order."""
        return sorted(set(self.sources.tolist()))

    def judges(self, name: str) -> dict[str, LoadedBundle]:
        """The bundle that judges each generator: with a leave-one-out fit one that has not seen it."""
        candidate = self.candidates[name]
        return {one: candidate.bundle or (candidate.by_generator or {})[one] for one in self.generators}

    def views(self, bundle: LoadedBundle, spec: str) -> list[str]:
        """The picture under ``spec``, then that picture after each of the detector's re-encodings."""
        others = bundle.detector.info.preprocessing.re_encodings if self.config.unsure else ()
        return [spec, *(f"{spec}+{other}" if spec else other for other in others)]

    def requests(self, bundle: LoadedBundle, spec: str) -> list[Request]:
        """Of one cell: the views of the photographs, then those of the generated faces."""
        sides = (self.config.shards, self.config.generated)
        views = self.views(bundle, spec)
        return [Request(bundle.folder, folder, SPLIT, view, self.config.limit) for folder in sides for view in views]

    def all_requests(self) -> list[Request]:
        """Of all cells; bundles that share an encoder share its features."""
        bundles = {
            (encoder_of(bundle), tuple(self.views(bundle, ""))): bundle
            for candidate in self.candidates.values()
            for bundle in candidate.bundles
        }
        specs = [spec for family in self.rows.values() for spec in family]
        return [one for bundle in bundles.values() for spec in specs for one in self.requests(bundle, spec)]


def robustness(config: RobustnessConfig, say: Say = print, work: Work | None = None) -> Path:
    """Audits the test set, measures the grid and writes robustness.html, .csv, .json and .md to ``config.output``.

    Needs a connection to Ray. ``say`` gets lines of progress; ``work`` is that of ``open_work``, opened here when it
    was not before.

    Returns:
        The page's path.

    Raises:
        EvaluationError: a bundle or shard set is missing, damaged or of the wrong kind, or a row is not known.
    """
    work = work or open_work(config)
    audit = named("shards or generated", partial(_audit, config))
    print(audit.verdict() + "\n", flush=True)
    named("shards or generated", partial(compute, work.all_requests(), config.extract, say))
    cells = {}
    for family, specs in work.rows.items():
        for spec in specs:
            for name in work.candidates:
                cells[spec, name] = _cell(work, name, spec, say)
        say(f"measured {family}")
    grid = grid_report.Grid(
        detectors=tuple(work.candidates),
        rows=work.rows,
        cells=cells,
        confidence=config.confidence,
        created=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        caveats=_caveats(work),
        audit=audit,
        config=config.model_dump(mode="json"),
        versions=library_versions(),
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
    sources = np.array(named("generated", partial(index_faces, config.generated)).sources[: config.limit])
    candidates = {
        name: named(f"detectors.{name}", partial(_open, str(where), set(sources.tolist())))
        for name, where in config.detectors.items()
    }
    kept = {name: specs for name, specs in GRID.items() if config.rows is None or name in config.rows}
    return Work(config, candidates, {grid_report.CLEAN: ("",), **kept}, sources)


def _open(where: str, generators: set[str]) -> CandidateDetector:
    found = open_candidate(where)
    if not found.bundles:
        raise ValueError(f"{where} is a function; the grid takes folders of detectors only")
    missing = sorted(generators - set(found.by_generator)) if found.by_generator is not None else []
    if missing:
        raise ValueError(
            f"{where} left out {', '.join(sorted(found.by_generator or ()))}, but not {', '.join(missing)}"
        )
    return found


def _audit(config: RobustnessConfig) -> parity.Audit:
    return parity.audit_sets(
        config.shards, config.generated, SPLIT, config.limit, config.bootstrap, config.confidence, config.seed
    )


def _caveats(work: Work) -> tuple[str, ...]:
    config = work.config
    origin = simulated((config.shards, config.generated), index_testset(TestSet(config.shards, config.generated)))
    found = [f"Measured on SIMULATED data ({origin})."] if origin else []
    for name, candidate in work.candidates.items():
        found += seen_in_training(name, candidate, work.generators)
        if candidate.by_generator is not None:
            found.append(f"{name}: every generator was judged by a head that had not seen it.")
    return tuple(found)


def _cell(work: Work, name: str, spec: str, say: Say) -> grid_report.Cell:
    config, pairs = work.config, {}
    found: dict[str, list[FeatureSet]] = {}  # by encoder
    sides: dict[Path, list[Predictions]] = {}  # by bundle
    for source, bundle in work.judges(name).items():
        if encoder_of(bundle) not in found:
            found[encoder_of(bundle)] = extract(work.requests(bundle, spec), config.extract, say)
        if bundle.folder not in sides:
            sides[bundle.folder] = _predictions(bundle, found[encoder_of(bundle)])
        real, generated = sides[bundle.folder]
        pairs[source] = Pair(real, rows_of(generated, np.flatnonzero(work.sources == source)))
    return grid_report.cell(assess(pairs, config.bootstrap, config.confidence, config.seed), config.confidence)


def _predictions(bundle: LoadedBundle, features: list[FeatureSet]) -> list[Predictions]:
    """On the two sides, from the features of ``Work.requests``."""
    detector, scores = bundle.detector, [bundle.detector.score(part.features) for part in features]
    half = len(scores) // 2
    found = []
    for plain, *others in (scores[:half], scores[half:]):
        re_encoded = dict(zip(detector.info.preprocessing.re_encodings, others, strict=bool(others)))
        found.append(predict(plain, re_encoded, detector.calibration, detector.probability(plain)))
    return found


def _write(grid: grid_report.Grid, folder: Path) -> Path:
    texts = {
        "robustness.json": json.dumps(grid_report.results(grid), indent=1, allow_nan=False) + "\n",
        "robustness.md": grid_report.to_markdown(grid),
        "robustness.csv": grid_report.to_csv(grid),
        "robustness.html": grid_report.to_html(grid),
    }
    for name, text in texts.items():
        write_atomically(folder / name, text)
    for line in (*grid.caveats, grid_report.summary(grid)):
        print(line)
    print(f"report: {folder / 'robustness.html'}", flush=True)
    return folder / "robustness.html"
