"""From an encoder and a shard set to a calibrated bundle: train, calibration and val split, one job each."""

import json
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

import blades_dist
from blades_dist.config import CalibrationConfig, FitConfig, ImportConfig, OperatingConfig
from blades_dist.data.records import Manifest, read_manifest
from blades_dist.detect.calibrate import Calibration, calibrate, check_supported, measure, wilson
from blades_dist.detect.consistency import calibrate_consistency
from blades_dist.detect.detector import Detector, save_detector
from blades_dist.detect.extract import Request, extract
from blades_dist.detect.features import FeatureSet
from blades_dist.detect.fitting import chosen_generators, fit_real, fit_with_generated, likelihood_of
from blades_dist.detect.heads.base import Fitted, Head
from blades_dist.detect.imports.folder import ENCODER as IMPORTED_ENCODER
from blades_dist.detect.imports.folder import load_import
from blades_dist.detect.info import (
    CalibrationSummary,
    DetectorInfo,
    OperatingPoint,
    Preprocessing,
    Provenance,
    Training,
)
from blades_dist.models.export import FrozenEncoder, encoder_digest, load_encoder, open_encoder, save_encoder
from blades_dist.progress import Say
from blades_dist.tasks import TAGS

FIT, CALIBRATE, MEASURE = "train", "calibration", "val"  # the test split stays untouched for the evaluate job
LEAVE_ONE_OUT = "leave_one_out.json"  # in the folder of such a fit: generator to folder of its bundle
HUGGING_FACE = "hf:"
_QUANTILES = (0, 1, 5, 10, 25, 50, 75, 90, 95, 99, 100)


@dataclass(frozen=True)
class RealFaces:
    """Features of one shard set's photographs by split, and under every re-encoding of those that thresholds need."""

    folder: Path
    manifest: Manifest
    splits: dict[str, FeatureSet]
    re_encoded: dict[str, dict[str, FeatureSet]]


def fit_detector(config: FitConfig, say: Say = print) -> dict[str, DetectorInfo]:
    """Fits, calibrates, measures and writes the bundle ``config.output``, or with ``leave_one_out`` one a generator.

    Needs a connection to Ray. ``say`` gets lines of progress. Returns the bundles by their folder's name.

    Raises:
        OSError: no encoder or no shard set where the configuration says.
        ValueError: too few faces for what is asked, sets of the wrong kind, or damaged files.
    """
    folder = encoder_folder(config)
    check_inputs(config, folder)
    encoder = load_encoder(folder)
    real = real_faces(config, folder, say)
    if config.generated is None:
        fitted = fit_real(config, real.splits[FIT], say)
        return {config.output.name: save_detector(config.output, assemble(config, encoder, real, fitted))}
    digest = _manifest(config.generated, "generated", "generated").digest()
    (generated,) = extract([Request(folder, config.generated, FIT)], config.extract, say)
    generated = chosen_generators(generated, config.generators, f"split {FIT} of {config.generated}")
    outputs = {config.output: generated} if not config.leave_one_out else _without_each(config.output, generated)
    likelihood = likelihood_of(config, real.splits[FIT], say)
    written = {}
    for output, faces in outputs.items():
        fitted = fit_with_generated(config, real.splits[FIT], likelihood, faces, digest, say)
        detector = assemble(config, encoder, real, fitted)
        output.parent.mkdir(parents=True, exist_ok=True)
        written[output.name] = save_detector(output, detector)
    if config.leave_one_out:
        index = {name: f"without-{name}" for name in sorted(set(generated.sources))}
        (config.output / LEAVE_ONE_OUT).write_text(json.dumps(index, indent=1) + "\n", encoding="utf-8")
    return written


def calibrate_import(config: ImportConfig, say: Say = print) -> DetectorInfo:
    """The detector of an import that was written to ``config.output``, as ``config.output/detector``: its own head
    calibrated on ``config.shards``, or where the file had none a mixture fitted to them.

    Needs a connection to Ray.

    Raises:
        OSError, ValueError: as ``fit_detector``.
    """
    assert config.shards is not None
    imported, output = load_import(config.output), config.output / "detector"
    encoder = config.output / IMPORTED_ENCODER
    given = {name: getattr(config, name) for name in OperatingConfig.model_fields}
    if imported.head is None:
        fit = FitConfig(encoder=str(encoder), shards=config.shards, output=output, oc=config.oc, **given)
        return fit_detector(fit, say)[output.name]
    calibration = CalibrationConfig(shards=config.shards, output=output, **given)
    check_inputs(calibration, encoder)
    real = real_faces(calibration, encoder, say, fit=False)
    return save_detector(output, assemble(calibration, imported.encoder, real, Fitted(imported.head)))


def check_inputs(config: CalibrationConfig, encoder: Path) -> None:
    """What can be refused before any work, and before a cluster is started for it.

    Raises:
        OSError, ValueError: as ``fit_detector``.
    """
    manifest = _manifest(config.shards, "photographs", "shards")
    for split in (*([FIT] if isinstance(config, FitConfig) else []), CALIBRATE, MEASURE):
        manifest.split(split)
    preprocessing(config, manifest, load_encoder(encoder))
    check_supported(manifest.rows[CALIBRATE], config.fpr)
    if isinstance(config, FitConfig) and config.generated is not None:
        _manifest(config.generated, "generated", "generated").split(FIT)


def encoder_folder(config: FitConfig) -> Path:
    """The folder of the configured encoder; one from Hugging Face is first written beside the bundle, once.

    Raises:
        OSError, ValueError: there is no such encoder, or it cannot be used.
    """
    if not config.encoder.startswith(HUGGING_FACE):
        return Path(config.encoder)
    encoder = open_encoder(config.encoder)
    folder = config.output.parent / ".encoders" / encoder_digest(encoder)[:16]
    save_encoder(encoder, folder)
    return folder


def real_faces(config: CalibrationConfig, encoder: Path, say: Say, fit: bool = True) -> RealFaces:
    """Features of the photographs that a head is fitted to (with ``fit``), calibrated and measured on.

    Raises:
        OSError, ValueError: as ``extract``, or the set holds no photographs.
    """
    manifest = _manifest(config.shards, "photographs", "shards")
    wanted = [*([(FIT, "")] if fit else [])]
    wanted += [(split, view) for split in (CALIBRATE, MEASURE) for view in ("", *config.re_encodings)]
    requests = [Request(encoder, config.shards, split, view) for split, view in wanted]
    found = dict(zip(wanted, extract(requests, config.extract, say), strict=True))
    splits = {split: own for (split, view), own in found.items() if not view}
    say(", ".join(f"{len(own)} real faces in split {split}" for split, own in splits.items()))
    re_encoded = {split: {view: found[split, view] for view in config.re_encodings} for split in (CALIBRATE, MEASURE)}
    return RealFaces(config.shards, manifest, splits, re_encoded)


def assemble(config: CalibrationConfig, encoder: FrozenEncoder, real: RealFaces, fitted: Fitted) -> Detector:
    """The calibrated and measured detector of a fitted or imported head; not written yet, so without an identity.

    Raises:
        ValueError: too few calibration faces for ``config.fpr``.
    """
    head = fitted.head
    scores = {name: head.score(part.features) for name, part in real.splits.items()}
    views = {split: _scores(head, own) for split, own in real.re_encoded.items()}
    calibration = calibrate(scores[CALIBRATE], config.fpr, config.unsure_fpr, views[CALIBRATE])
    held_out = real.splits[CALIBRATE]
    consistency = calibrate_consistency(
        encoder.logits(torch.from_numpy(held_out.features)), encoder.info.classes, held_out.labels, TAGS
    )
    verdicts = calibration.judge(scores[MEASURE], views[MEASURE])
    figures = dict(fitted.figures)
    for name, own in scores.items():
        figures[f"mean_score_{name}"] = float(own.mean())
    if FIT in scores:
        # What a threshold from the head's own training faces would have done, to show why there is a split for it.
        naive = np.quantile(scores[FIT], config.fpr)
        figures[f"{MEASURE}_fpr_of_a_threshold_from_{FIT}"] = float((scores[MEASURE] < naive).mean())
    n = len(scores[MEASURE])
    info = DetectorInfo(
        kind=head.kind,
        covariance=getattr(head, "covariance", None),
        fpr=config.fpr,
        unsure_fpr=config.unsure_fpr,
        operating_points=_points(calibration, scores[MEASURE]),
        calibration=_summary(calibration),
        measured_split=MEASURE,
        flagged_rate=wilson(int(verdicts.flagged.sum()), n),
        unsure_rate=wilson(int(verdicts.unsure.sum()), n),
        consistency_tags=consistency.tags,
        preprocessing=preprocessing(config, real.manifest, encoder),
        labels=encoder.info.classes,
        training=Training(
            split=FIT if FIT in real.splits else "",
            real=len(real.splits[FIT]) if FIT in real.splits else 0,
            sources=dict(Counter(real.splits[FIT].sources)) if FIT in real.splits else {},
            generated=fitted.generated,
            figures=figures,
            notes=fitted.notes,
        ),
        provenance=Provenance(
            manifest_digest=real.manifest.digest(),
            generated_digest=fitted.generated_digest,
            encoder_digest=encoder_digest(encoder),
            encoder=encoder.info.provenance,
            config=config.model_dump(mode="json", exclude={"ray", "extract"}),
            code_version=blades_dist.__version__,
        ),
    )
    compared = consistency if consistency.tags else None
    return Detector(info, encoder, head, calibration, "", compared, config.locator_model)


def preprocessing(config: CalibrationConfig, manifest: Manifest, encoder: FrozenEncoder) -> Preprocessing:
    """How faces must be made from photos for this detector: as the training split was.

    Raises:
        ValueError: the locator's model file is missing, or given where there is none.
    """
    needed = manifest.locator != "haar"
    if needed != (config.locator_model is not None):
        said = "was not given" if needed else "has none"
        located = f"faces of {config.shards} were located by {manifest.locator}"
        raise ValueError(f"locator_model: {located}, whose model file {said}")
    if config.locator_model is not None and not config.locator_model.is_file():
        raise FileNotFoundError(f"locator_model: {config.locator_model} does not exist")
    suffix = config.locator_model.suffix if config.locator_model is not None else ""
    return Preprocessing(
        image_size=encoder.info.image_size,
        resize=encoder.info.resize,
        locator=manifest.locator,
        locator_model=f"locator{suffix}" if needed else None,
        crop_scale=manifest.crop_scale,
        min_face_px=manifest.min_face_px,
        re_encodings=config.re_encodings,
        ordinal_edges=manifest.ordinal_edges,
    )


def summary(output: Path, info: DetectorInfo) -> list[str]:
    """Lines for the person who ran the job."""
    lines = [f"{name.replace('_', ' ')}: {value:.6g}" for name, value in info.training.figures.items()]
    lines += [f"note: {note}" for note in info.training.notes]
    for point in info.operating_points:
        mark = " (default)" if point.fpr == info.fpr else ""
        if point.threshold is None or point.measured is None:
            lines.append(f"FPR {point.fpr:g}{mark}: the {info.calibration.n} calibration faces are too few for it")
        else:
            lines.append(f"FPR {point.fpr:g}{mark}: threshold {point.threshold:.6g}, on {MEASURE}: {point.measured}")
    if info.unsure_rate is not None and info.flagged_rate is not None:
        lines.append(f"with re-encodings, of photographs on {MEASURE}: called AI-generated {info.flagged_rate}")
        lines.append(f"no verdict for {info.unsure_rate}")
    return [*lines, f"bundle: {output} ({output / 'README.md'} is its model card)"]


def _without_each(output: Path, generated: FeatureSet) -> dict[Path, FeatureSet]:
    names = sorted(set(generated.sources))
    if len(names) < 2:
        raise ValueError(f"leave_one_out: {', '.join(names)} is the only generator; two are the least")
    if output.exists() and any(output.iterdir()) and not (output / LEAVE_ONE_OUT).is_file():
        raise ValueError(f"output: {output} exists and holds no leave-one-out fit; choose another or remove it")
    return {output / f"without-{name}": generated.where(np.array(generated.sources) != name) for name in names}


def _manifest(folder: Path, kind: str, key: str) -> Manifest:
    manifest = read_manifest(folder)
    if manifest.kind != kind:
        raise ValueError(f"{key}: {folder} holds {manifest.kind}, expected {kind}")
    return manifest


def _scores(head: Head, views: dict[str, FeatureSet]) -> dict[str, np.ndarray]:
    return {name: head.score(part.features) for name, part in views.items()}


def _points(calibration: Calibration, scores: np.ndarray) -> list[OperatingPoint]:
    rates = measure(calibration, scores)
    return [OperatingPoint(fpr=fpr, threshold=t, measured=rates.get(fpr)) for fpr, t in calibration.thresholds.items()]


def _summary(calibration: Calibration) -> CalibrationSummary:
    quantiles = np.quantile(calibration.scores, [q / 100 for q in _QUANTILES])
    return CalibrationSummary(
        split=CALIBRATE,
        n=len(calibration.scores),
        smallest_fpr=calibration.smallest_fpr,
        quantiles={str(q): float(value) for q, value in zip(_QUANTILES, quantiles, strict=True)},
    )
