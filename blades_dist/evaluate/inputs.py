"""What an evaluation is given, looked at before anything takes time, and the test set made of it."""

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TypeVar

from blades_dist.config import EvaluateConfig
from blades_dist.data.records import Manifest, read_manifest
from blades_dist.detect.fit import CALIBRATE
from blades_dist.evaluate import projection
from blades_dist.evaluate.candidates import CandidateDetector, open_candidate
from blades_dist.evaluate.equalise import equalise
from blades_dist.evaluate.pretraining_run import Pretext, WeightHistory, read_run
from blades_dist.evaluate.scoring import SPLIT, TestSet
from blades_dist.evaluate.testset import prepare_testset
from blades_dist.progress import Say

Loaded = TypeVar("Loaded")


class EvaluationError(ValueError):
    """What was given cannot be evaluated; the message names the configuration key and what to do."""


@dataclass(frozen=True)
class Inputs:
    """Candidates by name, and what a pretraining run says of itself."""

    candidates: dict[str, CandidateDetector]
    weights: WeightHistory | None = None
    pretext: Pretext | None = None


@dataclass(frozen=True)
class PreparedTestSet:
    """The ``test`` set as evaluated, the one ``before`` it was equalised (None: it was not), the folders it was made of
    (``sources``), the manifest of its photographs before, and what a reader must know of all that."""

    test: TestSet
    before: TestSet | None
    sources: tuple[Path, ...]
    photographs: Manifest
    caveats: list[str] = field(default_factory=list)


def open_inputs(config: EvaluateConfig) -> Inputs:
    """Loads everything that can be missing or wrong.

    Raises:
        EvaluationError: something is; the message names its key.
    """
    if config.output.exists() and not config.output.is_dir():
        raise EvaluationError(f"output: {config.output} is not a folder")
    named("projection", partial(projection.check_method, config.projection))
    for key, folder, kind in (("shards", config.shards, "photographs"), ("generated", config.generated, "generated")):
        if folder is not None:
            named(key, partial(check_set, folder, kind))
    if config.testset is not None and not config.testset.exists():
        raise EvaluationError(f"testset: {config.testset} does not exist")
    candidates = {
        name: named(f"detectors.{name}", partial(open_candidate, where)) for name, where in config.detectors.items()
    }
    if config.history is None:
        return Inputs(candidates)
    return Inputs(candidates, *named("history", partial(read_run, config.history)))


def build_testset(config: EvaluateConfig, inputs: Inputs, say: Say) -> PreparedTestSet:
    """The test set as shard folders; images are ingested as the main detector's were, and equalised if asked for.

    Raises:
        OSError, ValueError: it cannot be used; the message says why.
    """
    if config.testset is not None:
        real, generated = _ingested(config, config.testset, inputs)
        sources: tuple[Path, ...] = (config.testset,)
    else:
        assert config.shards is not None and config.generated is not None  # EvaluateConfig checks it
        real, generated = config.shards, config.generated
        sources = (real, generated)
    manifest = read_manifest(real)
    before = TestSet(real, generated)
    if not config.equalise:
        return PreparedTestSet(before, None, sources, manifest)
    calibrated = bool(manifest.rows.get(CALIBRATE))
    splits = (SPLIT, CALIBRATE) if calibrated else (SPLIT,)
    say("bringing both sides into one container")
    made = equalise(real, generated, config.output / "equalised", (SPLIT,), splits, quality=config.quality)
    thresholds = (
        "Thresholds and p-values were found anew on the calibration photographs, treated alike."
        if calibrated
        else "Thresholds and p-values are those of the bundles, found on photographs that were not treated so: this "
        "test set has no calibration split."
    )
    test = TestSet(made.photographs, made.generated, recalibrate=calibrated)
    return PreparedTestSet(test, before, sources, manifest, [f"{made.sentence()} {thresholds}"])


def named(key: str, load: Callable[[], Loaded]) -> Loaded:
    """What ``load`` gives; an error of its names the configuration's ``key``.

    Raises:
        EvaluationError: ``load`` raised an OSError or ValueError.
    """
    try:
        return load()
    except EvaluationError:
        raise
    except (OSError, ValueError) as error:
        raise EvaluationError(f"{key}: {error}") from None


def _ingested(config: EvaluateConfig, source: Path, inputs: Inputs) -> tuple[Path, Path]:
    folder = config.output / "testset"
    bundles = [bundle.detector for candidate in inputs.candidates.values() for bundle in candidate.bundles]
    if not bundles:
        return prepare_testset(source, folder, faces=config.faces)
    shape = bundles[0].info.preprocessing
    for other in bundles[1:]:
        own = other.info.preprocessing
        if (own.locator, own.crop_scale, own.min_face_px) != (shape.locator, shape.crop_scale, shape.min_face_px):
            raise ValueError(
                f"the detectors take different crops ({own.locator}, {own.crop_scale}, {own.min_face_px} px and "
                f"{shape.locator}, {shape.crop_scale}, {shape.min_face_px} px): evaluate them apart"
            )
    return prepare_testset(
        source,
        folder,
        faces=config.faces,
        locator=shape.locator,
        locator_model=bundles[0].locator_model,
        min_face_px=shape.min_face_px,
        crop_scale=shape.crop_scale,
    )


def check_set(folder: Path, kind: str) -> Manifest:
    """The manifest of a shard set that has a test split.

    Raises:
        FileNotFoundError, ValueError: it is no shard set, one of another kind, or has no row there.
    """
    manifest = read_manifest(folder)
    if manifest.kind != kind:
        raise ValueError(f"{folder} holds {manifest.kind}, not {kind}")
    manifest.split(SPLIT)  # complains where it is empty
    return manifest
