"""The answers of every candidate on the two sides of a test set, and the features that they rest on."""

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
from blades_dist.evaluate.candidates import Bundle, Candidate, Scorer
from blades_dist.evaluate.predictions import Answers, Pair
from blades_dist.models.export import DESCRIPTION, WEIGHTS
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
class Faces:
    """Who n faces of a split are, in stored order: record ``ids``, ``sources`` and ``paths``."""

    ids: list[str]
    sources: list[str]
    paths: list[str]

    def __len__(self) -> int:
        return len(self.ids)


@dataclass(frozen=True)
class About:
    """The faces of the two sides; ``rows`` of the generated side by generator."""

    real: Faces
    generated: Faces
    rows: dict[str, np.ndarray]


def about(test: TestSet) -> About:
    """What the shards say of the faces of a test set.

    Raises:
        FileNotFoundError, ValueError: no shard set, or no row in its test split.
    """
    real, generated = faces(test.real), faces(test.generated)
    sources = np.array(generated.sources)
    return About(real, generated, {name: np.flatnonzero(sources == name) for name in sorted(set(generated.sources))})


def faces(folder: Path, split: str = SPLIT) -> Faces:
    """The faces of one split; no picture is read."""
    names = ["id", "source", "path"]
    tables = [pq.read_table(folder / shard.name, columns=names) for shard in read_manifest(folder).split(split)]
    return Faces(*(pa.concat_tables(tables)[name].to_pylist() for name in names))


@dataclass(frozen=True)
class Judged:
    """Answers by generator, with the operating point: ``threshold`` of the score (None: one each generator, or nothing
    is ever flagged), in ``unit``."""

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

    def __init__(self, candidates: Iterable[Candidate], test: TestSet, config: ExtractConfig, say: Say) -> None:
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

    def of(self, bundle: Bundle, folder: Path, split: str = SPLIT) -> _Views:
        """Features of one side under the bundle's encoder."""
        own = {
            view: self._found[encoder_of(bundle), folder, split, view]
            for view in ("", *bundle.detector.info.preprocessing.re_encodings)
        }
        return _Views(own.pop(""), own)


def encoder_of(bundle: Bundle) -> str:
    """Identity of a bundle's encoder."""
    files = bundle.detector.info.files
    return files[WEIGHTS] + files[DESCRIPTION]


def judge(name: str, candidate: Candidate, features: Features, about: About, say: Say) -> Judged:
    """A candidate's answers on the test set.

    Raises:
        ValueError: scores that are not finite or too few, or a leave-one-out fit that lacks one of the generators.
    """
    if candidate.scorer is not None:
        return _judge_scorer(candidate.scorer, features.test, about, lambda text: say(f"{name}: {text}"))
    if candidate.bundle is not None:
        ruling = _ruling(candidate.bundle, features)
        threshold = ruling.calibration.threshold()
        known = threshold if np.isfinite(threshold) else None
        return _judged({source: ruling for source in about.rows}, about, known)
    by_generator = candidate.by_generator or {}
    missing = sorted(set(about.rows) - set(by_generator))
    if missing:
        raise ValueError(f"{candidate.where} left out {', '.join(sorted(by_generator))}, but not {', '.join(missing)}")
    return _judged({source: _ruling(by_generator[source], features) for source in about.rows}, about, None)


@dataclass(frozen=True)
class _Ruling:
    """One bundle's answers on both sides, and what they were calibrated by."""

    unit: str
    calibration: Calibration
    real: Answers
    generated: Answers


def _ruling(bundle: Bundle, features: Features) -> _Ruling:
    calibration, test = _calibration(bundle, features), features.test
    real, generated = (_answers(bundle, calibration, features.of(bundle, side)) for side in (test.real, test.generated))
    return _Ruling(HEADS[bundle.detector.info.kind].unit, calibration, real, generated)


def _judged(rulings: Mapping[str, _Ruling], about: About, threshold: float | None) -> Judged:
    """Every generator by its own ruling, or all by the same."""
    pairs = {name: Pair(one.real, rows_of(one.generated, about.rows[name])) for name, one in rulings.items()}
    last = list(rulings.values())[-1]
    return Judged(pairs, threshold, last.unit, len(last.calibration.scores))


def crops(folder: Path, split: str) -> Iterable[tuple[str, np.ndarray]]:
    """Ids and crops (H, W, 3) uint8 RGB of a split in stored order."""
    for shard in read_manifest(folder).split(split):
        yield from stored_faces(folder / shard.name, 0, len(shard.row_groups))


def _calibration(bundle: Bundle, features: Features) -> Calibration:
    own = bundle.detector.calibration
    if not features.test.recalibrate:
        return own
    held_out = features.of(bundle, features.test.real, CALIBRATE)
    scores = bundle.detector.score(held_out.plain.features)
    views = {view: bundle.detector.score(part.features) for view, part in held_out.re_encoded.items()}
    return calibrate(scores, own.fpr, own.unsure_fpr, views)


def _answers(bundle: Bundle, calibration: Calibration, views: _Views) -> Answers:
    scores = bundle.detector.score(views.plain.features)
    re_encoded = {view: bundle.detector.score(part.features) for view, part in views.re_encoded.items()}
    return answers(scores, re_encoded, calibration, bundle.detector.probability(scores))


def answers(
    scores: np.ndarray,
    re_encoded: Mapping[str, np.ndarray],
    calibration: Calibration,
    probability: np.ndarray | None = None,
) -> Answers:
    """Answers at the calibration's own operating point.

    Raises:
        ValueError: a score is not finite.
    """
    verdicts = calibration.judge(scores, re_encoded)
    return Answers(scores, calibration.is_generated(scores), verdicts.unsure, calibration.p_values(scores), probability)


def rows_of(whole: Answers, rows: np.ndarray) -> Answers:
    """The answers on some of the faces."""
    given = {name: values[rows] for name, values in vars(whole).items() if values is not None}
    return replace(whole, **given)


def _judge_scorer(scorer: Scorer, test: TestSet, about: About, say: Say) -> Judged:
    real, generated = (_scores(scorer, folder, SPLIT, say) for folder in (test.real, test.generated))
    if CALIBRATE in read_manifest(test.real).rows and read_manifest(test.real).rows[CALIBRATE]:
        calibration = calibrate(_scores(scorer, test.real, CALIBRATE, say), SCORER_FPR)
        sides = [answers(scores, {}, calibration) for scores in (real, generated)]
        threshold, n = calibration.threshold(), len(calibration.scores)
    elif getattr(scorer, "threshold", None) is not None:
        threshold, n = float(scorer.threshold), 0  # type: ignore[attr-defined]
        nobody = [np.zeros(len(scores), bool) for scores in (real, generated)]
        flagged = [scores < threshold for scores in (real, generated)]
        pairs = zip((real, generated), flagged, nobody, strict=True)
        sides = [Answers(scores, flags, unsure, None, None) for scores, flags, unsure in pairs]
    else:
        raise ValueError(
            f"photographs in {test.real} have no calibration split to find a threshold on, and the scorer has no "
            "attribute threshold (call a face AI-generated below that score); give it one"
        )
    by_generator = {source: Pair(sides[0], rows_of(sides[1], rows)) for source, rows in about.rows.items()}
    return Judged(by_generator, threshold, "score of the given function", n)


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
