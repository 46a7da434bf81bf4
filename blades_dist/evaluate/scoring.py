"""The predictions of every candidate on the two sides of a test set, and the features that they rest on."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from blades_dist.config import ExtractConfig
from blades_dist.data.records import read_manifest
from blades_dist.detect.calibrate import Calibration, calibrate
from blades_dist.detect.extract import Request, extract
from blades_dist.detect.features import FeatureSet, stored_faces
from blades_dist.detect.fit import CALIBRATE
from blades_dist.detect.heads import HEADS
from blades_dist.evaluate.candidates import CandidateDetector, LoadedBundle, Scorer
from blades_dist.evaluate.predictions import Pair, Predictions
from blades_dist.models.encoder_info import DESCRIPTION
from blades_dist.models.export import WEIGHTS
from blades_dist.progress import Say

SPLIT = "test"
SCORER_FPR = 0.05  # at which a user's scorer is calibrated
_AT_ONCE = 64  # crops that a user's scorer gets in one call


@dataclass(frozen=True)
class TestSet:
    """Shard folders of both sides, their ``test`` split. ``recalibrate``: thresholds come from the calibration split of
    ``real`` instead of from the bundles."""

    __test__ = False  # no test class for pytest

    real: Path
    generated: Path
    recalibrate: bool = False


@dataclass(frozen=True)
class FaceIndex:
    """Who n faces of a split are, in stored order: record ``ids``, ``sources`` and ``paths``."""

    ids: list[str]
    sources: list[str]
    paths: list[str]

    def __len__(self) -> int:
        return len(self.ids)


@dataclass(frozen=True)
class FacesBySide:
    """The faces of the two sides; ``rows`` of the generated side by generator."""

    real: FaceIndex
    generated: FaceIndex
    rows: dict[str, np.ndarray]


def index_testset(test: TestSet) -> FacesBySide:
    """What the shards say of the faces of a test set.

    Raises:
        FileNotFoundError, ValueError: no shard set, or no row in its test split.
    """
    real, generated = index_faces(test.real), index_faces(test.generated)
    sources = np.array(generated.sources)
    rows = {name: np.flatnonzero(sources == name) for name in sorted(set(generated.sources))}
    return FacesBySide(real, generated, rows)


def index_faces(folder: Path, split: str = SPLIT) -> FaceIndex:
    """The faces of one split; no picture is read."""
    names = ["id", "source", "path"]
    tables = [pq.read_table(folder / shard.name, columns=names) for shard in read_manifest(folder).split(split)]
    return FaceIndex(*(pa.concat_tables(tables)[name].to_pylist() for name in names))


@dataclass(frozen=True)
class ScoredCandidate:
    """Predictions by generator, with the operating point: ``threshold`` of the score (None: one each generator, or
    nothing is ever flagged), in ``unit``."""

    pairs: dict[str, Pair]
    threshold: float | None
    unit: str
    calibrated_on: int


@dataclass(frozen=True)
class _Views:
    """Features of one encoder on one side: as stored, and by re-encoding."""

    plain: FeatureSet
    re_encoded: dict[str, FeatureSet]


class Features:
    """All that the candidates' bundles need, extracted in one job; encoders that are equal share what was computed."""

    def __init__(self, candidates: Iterable[CandidateDetector], test: TestSet, config: ExtractConfig, say: Say) -> None:
        self.test = test
        sides = [(test.real, SPLIT), (test.generated, SPLIT)]
        sides += [(test.real, CALIBRATE)] if test.recalibrate else []
        wanted: dict[tuple[str, Path, str, str], Request] = {}
        for bundle in [bundle for candidate in candidates for bundle in candidate.bundles]:
            for folder, split in sides:
                for view in ("", *bundle.detector.info.preprocessing.re_encodings):
                    key = (encoder_of(bundle), folder, split, view)
                    wanted.setdefault(key, Request(bundle.folder, folder, split, view))
        self._found = dict(zip(wanted, extract(list(wanted.values()), config, say), strict=True))

    def of(self, bundle: LoadedBundle, folder: Path, split: str = SPLIT) -> _Views:
        """Features of one side under the bundle's encoder."""
        own = {
            view: self._found[encoder_of(bundle), folder, split, view]
            for view in ("", *bundle.detector.info.preprocessing.re_encodings)
        }
        return _Views(own.pop(""), own)


def encoder_of(bundle: LoadedBundle) -> str:
    """Identity of a bundle's encoder."""
    files = bundle.detector.info.files
    return files[WEIGHTS] + files[DESCRIPTION]


def score_candidate(
    name: str, candidate: CandidateDetector, features: Features, faces: FacesBySide, say: Say
) -> ScoredCandidate:
    """A candidate's predictions on the test set.

    Raises:
        ValueError: scores that are not finite or too few, or a leave-one-out fit that lacks one of the generators.
    """
    if candidate.scorer is not None:
        return _score_by_function(candidate.scorer, features.test, faces, lambda text: say(f"{name}: {text}"))
    if candidate.bundle is not None:
        scored = _scored_bundle(candidate.bundle, features)
        threshold = scored.calibration.threshold()
        known = threshold if np.isfinite(threshold) else None
        return _by_generator({source: scored for source in faces.rows}, faces, known)
    by_generator = candidate.by_generator or {}
    missing = sorted(set(faces.rows) - set(by_generator))
    if missing:
        raise ValueError(f"{candidate.where} left out {', '.join(sorted(by_generator))}, but not {', '.join(missing)}")
    return _by_generator({source: _scored_bundle(by_generator[source], features) for source in faces.rows}, faces, None)


@dataclass(frozen=True)
class _ScoredBundle:
    """One bundle's predictions on both sides, and what they were calibrated by."""

    unit: str
    calibration: Calibration
    real: Predictions
    generated: Predictions


def _scored_bundle(bundle: LoadedBundle, features: Features) -> _ScoredBundle:
    calibration, test = _calibration(bundle, features), features.test
    real, generated = (
        _predictions(bundle, calibration, features.of(bundle, side)) for side in (test.real, test.generated)
    )
    return _ScoredBundle(HEADS[bundle.detector.info.kind].unit, calibration, real, generated)


def _by_generator(bundles: Mapping[str, _ScoredBundle], faces: FacesBySide, threshold: float | None) -> ScoredCandidate:
    """Every generator by its own bundle, or all by the same."""
    pairs = {name: Pair(one.real, rows_of(one.generated, faces.rows[name])) for name, one in bundles.items()}
    last = list(bundles.values())[-1]
    return ScoredCandidate(pairs, threshold, last.unit, len(last.calibration.scores))


def crops(folder: Path, split: str) -> Iterable[tuple[str, np.ndarray]]:
    """Ids and crops (H, W, 3) uint8 RGB of a split in stored order."""
    for shard in read_manifest(folder).split(split):
        yield from stored_faces(folder / shard.name, 0, len(shard.row_groups))


def _calibration(bundle: LoadedBundle, features: Features) -> Calibration:
    own = bundle.detector.calibration
    if not features.test.recalibrate:
        return own
    held_out = features.of(bundle, features.test.real, CALIBRATE)
    scores = bundle.detector.score(held_out.plain.features)
    views = {view: bundle.detector.score(part.features) for view, part in held_out.re_encoded.items()}
    return calibrate(scores, own.fpr, own.unsure_fpr, views)


def _predictions(bundle: LoadedBundle, calibration: Calibration, views: _Views) -> Predictions:
    scores = bundle.detector.score(views.plain.features)
    re_encoded = {view: bundle.detector.score(part.features) for view, part in views.re_encoded.items()}
    return predict(scores, re_encoded, calibration, bundle.detector.probability(scores))


def predict(
    scores: np.ndarray,
    re_encoded: Mapping[str, np.ndarray],
    calibration: Calibration,
    probability: np.ndarray | None = None,
) -> Predictions:
    """Predictions at the calibration's own operating point.

    Raises:
        ValueError: a score is not finite.
    """
    verdicts = calibration.judge(scores, re_encoded)
    flagged, p_values = calibration.is_generated(scores), calibration.p_values(scores)
    return Predictions(scores, flagged, verdicts.unsure, p_values, probability)


def rows_of(whole: Predictions, rows: np.ndarray) -> Predictions:
    """The predictions on some of the faces."""
    given = {name: values[rows] for name, values in vars(whole).items() if values is not None}
    return replace(whole, **given)


def _score_by_function(scorer: Scorer, test: TestSet, faces: FacesBySide, say: Say) -> ScoredCandidate:
    real, generated = (_scores(scorer, folder, SPLIT, say) for folder in (test.real, test.generated))
    if CALIBRATE in read_manifest(test.real).rows and read_manifest(test.real).rows[CALIBRATE]:
        calibration = calibrate(_scores(scorer, test.real, CALIBRATE, say), SCORER_FPR)
        sides = [predict(scores, {}, calibration) for scores in (real, generated)]
        threshold, n = calibration.threshold(), len(calibration.scores)
    elif getattr(scorer, "threshold", None) is not None:
        threshold, n = float(scorer.threshold), 0  # type: ignore[attr-defined]
        nobody = [np.zeros(len(scores), bool) for scores in (real, generated)]
        flagged = [scores < threshold for scores in (real, generated)]
        pairs = zip((real, generated), flagged, nobody, strict=True)
        sides = [Predictions(scores, flags, unsure, None, None) for scores, flags, unsure in pairs]
    else:
        raise ValueError(
            f"photographs in {test.real} have no calibration split to find a threshold on, and the scorer has no "
            "attribute threshold (call a face AI-generated below that score); give it one"
        )
    by_generator = {source: Pair(sides[0], rows_of(sides[1], rows)) for source, rows in faces.rows.items()}
    return ScoredCandidate(by_generator, threshold, "score of the given function", n)


def _scores(scorer: Scorer, folder: Path, split: str, say: Say) -> np.ndarray:
    found: list[np.ndarray] = []
    coming, total = iter(crops(folder, split)), read_manifest(folder).rows[split]
    while part := [pixels for _, pixels in islice(coming, _AT_ONCE)]:
        scores = np.asarray(scorer(part), np.float64)
        if scores.shape != (len(part),) or not np.isfinite(scores).all():
            raise ValueError(
                f"the scorer returned {scores.shape} for {len(part)} crops; expected as many finite scores"
            )
        found.append(scores)
        say(f"scored {sum(map(len, found))} of {total} faces of {folder}, split {split}")
    return np.concatenate(found)
