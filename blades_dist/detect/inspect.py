"""An image file's bytes to one answer a face, and answers as lines for a terminal.

The predict job and the service both go through here, so they agree.
"""

import math
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from blades_dist.data.decode import Rejected
from blades_dist.data.exif import Raw
from blades_dist.data.faces import Face, sidecar_of
from blades_dist.detect.consistency import claimed_labels
from blades_dist.detect.detector import Detector, FaceResult, ReadOuts
from blades_dist.detect.preprocess import PreprocessedImage, Unusable, preprocess
from blades_dist.detect.schema import DetectorReference, ExifClaim, ExifReport, FaceReport, ImageReport
from blades_dist.tags import words_of
from blades_dist.tasks import TASKS, vocabulary

_FILES_AT_ONCE = 16


def report(detector: Detector, prepared: PreprocessedImage, results: Sequence[FaceResult]) -> ImageReport:
    """The document of one image; ``results`` are those of its crops, in order."""
    return ImageReport(
        sha256=prepared.sha256,
        bytes=prepared.size,
        width=prepared.width,
        height=prepared.height,
        codec=prepared.codec,
        jpeg_quality=prepared.jpeg_quality,
        faces_from=prepared.faces_from,
        faces_too_small=prepared.too_small,
        detector=reference(detector),
        credentials=prepared.credentials,
        faces=[
            FaceReport(
                face=i,
                box=face.box,
                landmarks=_points(face) if prepared.faces_from != "whole image" else None,
                exif_consistency=exif_report(detector, prepared.exif, result.read_outs),
                **vars(result),
            )
            for i, (face, result) in enumerate(zip(prepared.faces, results, strict=True), 1)
        ],
    )


def exif_report(detector: Detector, exif: Raw, read_outs: ReadOuts) -> ExifReport | None:
    """How well a face's read-outs fit its file's EXIF; None where there is nothing to compare."""
    if detector.consistency is None:
        return None
    claimed = claimed_labels(exif, detector.info.preprocessing.ordinal_edges)
    names = {task.tag: task.name for task in TASKS if task.tag is not None and task.name in read_outs}
    log_probability = {
        tag: math.log(max(read_outs[names[tag]][vocabulary(tag)[label]], 5e-324))
        for tag, label in claimed.items()
        if tag in names
    }
    found = detector.consistency.assess(claimed, log_probability)
    if found is None:
        return None
    tags = {tag: ExifClaim(**vars(claim)) for tag, claim in found.tags.items()}
    return ExifReport(tags=tags, p_value=found.p_value, compared_with=found.compared_with)


def reference(detector: Detector) -> DetectorReference:
    """The detector's identity as answers carry it."""
    return DetectorReference(
        id=detector.id, kind=detector.info.kind, code_version=detector.info.provenance.code_version
    )


def inspect_files(
    detector: Detector,
    files: Sequence[Path],
    max_pixels: int,
    max_bytes: int,
    fpr: float | None = None,
    whole: bool = False,
) -> Iterator[tuple[Path, ImageReport | Unusable]]:
    """An answer for every file, in order; a file that cannot be used does not stop the others."""
    rate = detector.check_fpr(fpr)
    for begin in range(0, len(files), _FILES_AT_ONCE):
        part = files[begin : begin + _FILES_AT_ONCE]
        opened = [_open(file, detector, max_pixels, max_bytes, whole) for file in part]
        usable = [item for item in opened if isinstance(item, PreprocessedImage)]
        results = iter(detector.detect(np.concatenate([item.crops for item in usable]), rate) if usable else [])
        for file, item in zip(part, opened, strict=True):
            if isinstance(item, PreprocessedImage):
                yield file, report(detector, item, [next(results) for _ in item.faces])
            else:
                yield file, item


def _open(file: Path, detector: Detector, max_pixels: int, max_bytes: int, whole: bool) -> PreprocessedImage | Unusable:
    how, model = detector.info.preprocessing, detector.locator_model
    try:
        size = file.stat().st_size
        if size > max_bytes:
            return Unusable("too_large", f"{size} bytes; the limit is {max_bytes}")
        beside = sidecar_of(file)
        sidecar = beside.read_bytes() if beside.is_file() and not whole else None
        return preprocess(file.read_bytes(), how, max_pixels, max_bytes, sidecar, whole, model)
    except Rejected as error:
        return Unusable(error.reason, error.detail)
    except OSError as error:
        return Unusable("unreadable", error.strerror or type(error).__name__)


def _points(face: Face) -> list[tuple[float, float]]:
    return [(float(x), float(y)) for x, y in face.landmarks]


HOW_TO_READ = (
    "How to read this: p is the share of real photographs that look as unusual as this face; at or below {fpr:g} a\n"
    "face is called AI-generated, so about {fpr:.2%} of photographs like the calibration ones are called so wrongly.\n"
    "'photographic' means not unusual, which is no proof; 'unsure' means that the evidence is thin or not stable.\n"
    "What the pixels suggest, EXIF and content credentials are no part of the verdict. The measured rates are in the\n"
    "detector folder's README.md."
)
_VERDICTS = {"photographic": "photographic", "ai_generated": "AI-generated", "unsure": "unsure"}


def lines(name: str, image: ImageReport) -> list[str]:
    """One image: a line a face, with what speaks beside the verdict indented under it."""
    found = []
    for face in image.faces:
        x, y, w, h = face.box
        where = f"{name} face {face.face} at {x:.0f},{y:.0f} {w:.0f}x{h:.0f}"
        found.append(f"{where}: {_VERDICTS[face.verdict]}, p = {face.p_value:.4g}")
        found += [f"    {line}" for line in _beside(face)]
    if image.faces_too_small:
        found.append(f"{name}: {image.faces_too_small} more face(s) too small to judge")
    if image.credentials is not None:
        signer = f" signed by {image.credentials.issuer}" if image.credentials.issuer else ""
        said = ": they say that an algorithm made the picture" if image.credentials.generated else ""
        found.append(f"{name}: content credentials{signer}, state {image.credentials.state}{said}")
    return found


def _beside(face: FaceReport) -> list[str]:
    found = list(face.unsure_because)
    regions = face.read_outs.get("face_fine", {})
    if regions:
        region, value = max(regions.items(), key=lambda item: item[1])
        found.append(f"region that looks most manipulated: {region} ({value:.2f})")
    tags = {task: max(own, key=lambda name: own[name]) for task, own in face.read_outs.items() if "face_" not in task}
    if tags:
        suggested = ", ".join(
            f"{words_of(task)} {best} ({face.read_outs[task][best]:.2f})" for task, best in tags.items()
        )
        found.append(f"the pixels suggest: {suggested}")
    exif = face.exif_consistency
    if exif is not None:
        claims = ", ".join(
            f"{words_of(tag)} {claim.claimed} ({claim.probability:.2f})" for tag, claim in exif.tags.items()
        )
        together = "too few photographs to compare with" if exif.p_value is None else f"together p = {exif.p_value:.4g}"
        found.append(f"the file's EXIF claims: {claims}; {together}")
    return found
