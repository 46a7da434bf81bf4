"""From a frozen encoder and a shard set to a calibrated bundle: train, calibration and val split, one job each."""

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

import blades_dist
from blades_dist.config import FitConfig
from blades_dist.data.records import Manifest, read_manifest
from blades_dist.detect.binary import fit_binary
from blades_dist.detect.bundle import save_detector
from blades_dist.detect.calibrate import Calibration, calibrate, measure
from blades_dist.detect.detector import Head
from blades_dist.detect.features import FeatureSet, extract
from blades_dist.detect.info import (
    CalibrationSummary,
    DetectorInfo,
    OperatingPoint,
    Preprocessing,
    Provenance,
    Training,
)
from blades_dist.detect.one_class import fit_one_class
from blades_dist.models.export import FrozenEncoder, encoder_digest, load_encoder

FIT, CALIBRATE, MEASURE = "train", "calibration", "val"  # the test split stays untouched for the evaluate job
_QUANTILES = (0, 1, 5, 10, 25, 50, 75, 90, 95, 99, 100)


@dataclass
class _Fitted:
    """A head with what is worth telling about its fit."""

    head: Head
    figures: dict[str, float]
    generated: dict[str, int] = field(default_factory=dict)
    generated_digest: str | None = None


def fit_detector(config: FitConfig, say: Callable[[str], None] = print) -> DetectorInfo:
    """Fits, calibrates, measures and writes the bundle ``config.output``; ``say`` gets lines of progress.

    Raises:
        FileNotFoundError: no encoder or no shard set where the configuration says.
        ValueError: too few faces for what is asked, sets of the wrong kind, or damaged files.
    """
    encoder = load_encoder(config.encoder)
    manifest = _manifest(config, "photographs")
    real = {name: _features(encoder, config, name, say) for name in (FIT, CALIBRATE, MEASURE)}
    fitted = _fit_oc(config, real, say) if config.kind == "oc" else _fit_bc(config, encoder, real, say)
    scores = {name: fitted.head.score(part.features) for name, part in real.items()}
    calibration = calibrate(scores[CALIBRATE], config.fpr)
    info = _describe(config, encoder, manifest, real[FIT], fitted, calibration, scores)
    return save_detector(config.output, info, encoder, fitted.head, calibration)


def summary(config: FitConfig, info: DetectorInfo) -> list[str]:
    """Lines for the person who ran the job."""
    lines = [f"{name.replace('_', ' ')}: {value:.6g}" for name, value in info.training.figures.items()]
    for point in info.operating_points:
        mark = " (default)" if point.fpr == info.fpr else ""
        if point.threshold is None or point.measured is None:
            lines.append(f"FPR {point.fpr:g}{mark}: the {info.calibration.n} calibration faces are too few for it")
        else:
            lines.append(f"FPR {point.fpr:g}{mark}: threshold {point.threshold:.6g}, on {MEASURE}: {point.measured}")
    return [*lines, f"bundle: {config.output} ({config.output / 'README.md'} is its model card)"]


def preprocessing(manifest: Manifest, image_size: int) -> Preprocessing:
    """How faces must be made from photos for this detector: as the training split was.

    Raises:
        ValueError: its faces were located by something that detectors do not carry with them yet.
    """
    if manifest.locator != "haar":
        raise ValueError(
            f"shards: their faces were located by {manifest.locator}, whose model file a detector does not carry yet; "
            "ingest with locator haar, or with faces from sidecars or the data set itself"
        )
    return Preprocessing(
        image_size=image_size,
        locator="haar",
        crop_scale=manifest.crop_scale,
        min_face_px=manifest.min_face_px,
    )


def _manifest(config: FitConfig, kind: str) -> Manifest:
    folder = config.shards if kind == "photographs" else config.generated
    assert folder is not None  # FitConfig checks it
    manifest = read_manifest(folder)
    if manifest.kind != kind:
        key = "shards" if kind == "photographs" else "generated"
        raise ValueError(f"{key}: {folder} holds {manifest.kind}, expected {kind}")
    return manifest


def _features(encoder: FrozenEncoder, config: FitConfig, split: str, say: Callable[[str], None]) -> FeatureSet:
    found = extract(encoder, config.shards, split, config.batch_size, progress=_told(f"{split} features", say))
    say(f"{len(found)} real faces in split {split}")
    return found


def _fit_oc(config: FitConfig, real: dict[str, FeatureSet], say: Callable[[str], None]) -> _Fitted:
    oc = config.oc
    size = f"{oc.components} {oc.covariance} Gaussians" + (f" in {oc.pca} whitened dimensions" if oc.pca else "")
    say(f"fitting {size}, {oc.starts} starts")
    head = fit_one_class(real[FIT].features, oc, config.seed)
    figures = {"bic": head.bic(real[FIT].features)}
    for name, part in real.items():
        figures[f"mean_log_likelihood_{name}"] = float(head.score(part.features).mean())
    # What a threshold from the mixture's own training faces would have done, to show why there is a split for it.
    naive = np.quantile(head.score(real[FIT].features), config.fpr)
    figures[f"{MEASURE}_fpr_of_a_threshold_from_{FIT}"] = float((head.score(real[MEASURE].features) < naive).mean())
    return _Fitted(head, figures)


def _fit_bc(
    config: FitConfig, encoder: FrozenEncoder, real: dict[str, FeatureSet], say: Callable[[str], None]
) -> _Fitted:
    manifest = _manifest(config, "generated")
    assert config.generated is not None
    generated = extract(encoder, config.generated, FIT, config.batch_size, progress=_told("AI features", say))
    if config.generators is not None:
        unknown = sorted(set(config.generators) - set(generated.sources))
        if unknown:
            known = ", ".join(sorted(set(generated.sources)))
            absent = ", ".join(unknown)
            raise ValueError(f"generators: {absent} not in split {FIT} of {config.generated}; it has: {known}")
        generated = generated.where(np.isin(generated.sources, config.generators))
    say(f"{len(generated)} AI faces; fitting the mixture that ranks real faces, then the perceptron")
    likelihood = fit_one_class(real[FIT].features, config.oc, config.seed).score(real[FIT].features)
    head, training = fit_binary(
        real[FIT].features, generated.features, likelihood, config.bc, config.seed, _told("epoch", say)
    )
    figures = {name: float(value) for name, value in vars(training).items()}
    return _Fitted(head, figures, dict(Counter(generated.sources)), manifest.digest())


def _describe(
    config: FitConfig,
    encoder: FrozenEncoder,
    manifest: Manifest,
    train: FeatureSet,
    fitted: _Fitted,
    calibration: Calibration,
    scores: dict[str, np.ndarray],
) -> DetectorInfo:
    rates = measure(calibration, scores[MEASURE])
    quantiles = np.quantile(calibration.scores, [q / 100 for q in _QUANTILES])
    return DetectorInfo(
        kind=config.kind,
        covariance=config.oc.covariance if config.kind == "oc" else None,
        fpr=config.fpr,
        operating_points=[
            OperatingPoint(fpr=fpr, threshold=threshold, measured=rates.get(fpr))
            for fpr, threshold in calibration.thresholds.items()
        ],
        calibration=CalibrationSummary(
            split=CALIBRATE,
            n=len(calibration.scores),
            smallest_fpr=calibration.smallest_fpr,
            quantiles={str(q): float(value) for q, value in zip(_QUANTILES, quantiles, strict=True)},
        ),
        measured_split=MEASURE,
        preprocessing=preprocessing(manifest, encoder.info.image_size),
        labels=encoder.info.classes,
        training=Training(
            split=FIT,
            real=len(train),
            sources=dict(Counter(train.sources)),
            generated=fitted.generated,
            figures=fitted.figures,
        ),
        provenance=Provenance(
            manifest_digest=manifest.digest(),
            generated_digest=fitted.generated_digest,
            encoder_digest=encoder_digest(config.encoder),
            encoder=encoder.info.provenance,
            config=config.model_dump(mode="json", exclude={"ray"}),
            code_version=blades_dist.__version__,
        ),
    )


def _told(what: str, say: Callable[[str], None]) -> Callable[[int, int], None]:
    """Progress as lines, one a tenth of the way."""
    told = -1

    def progress(done: int, total: int) -> None:
        nonlocal told
        tenth = 10 * done // max(1, total)
        if tenth > told:
            told = tenth
            say(f"{what}: {done} of {total}")

    return progress
