"""What ingest understands of one file, said to a person: ``jobs/ingest.py --inspect FILE``. No Ray here."""

import hashlib
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from blades_dist.config import IngestConfig
from blades_dist.data.crops import Outcome, Photo, split_of
from blades_dist.data.decode import ImageFile, Rejected, open_image
from blades_dist.data.exif import Reading, explain, number
from blades_dist.data.exif_reader import FIELD_NAMES, FOCAL_LENGTH_35MM, ORIENTATION, Fields, read_fields
from blades_dist.data.faces import parse_sidecar, sidecar_of
from blades_dist.data.sandbox import PhotoProcess
from blades_dist.data.sources.base import Annotations
from blades_dist.tags import EXIF_TAGS, ExifTag, words_of


@dataclass(frozen=True)
class TagReport:
    """One tag: ``value`` in ``unit`` or a word; the EXIF ``field`` and what is ``stored`` there, or ``why`` not."""

    value: float | str | None
    unit: str | None
    field: str | None
    stored: float | str | None
    why: str


@dataclass(frozen=True)
class FaceFound:
    """``box`` (x, y, w, h) in pixels of the upright photo; ``problem`` says why it would give no row."""

    box: tuple[float, ...]
    score: float | None
    problem: str


@dataclass(frozen=True)
class Inspection:
    """What is understood of one file; ``as_json`` is for machines, ``text`` for people. Sizes are upright, in pixels,
    and None when the file cannot be opened; ``taken`` says whether ingest would make rows of it."""

    path: str
    bytes: int
    sha256: str
    split: str
    codec: str | None
    width: int | None
    height: int | None
    jpeg_quality: float | None
    orientation: float | str | None
    tags: dict[str, TagReport]
    focal_length_35mm: float | str | None
    faces_from: str
    faces: list[FaceFound]
    taken: bool
    reason: str
    detail: str

    def as_json(self) -> dict[str, Any]:
        """The same as values that JSON can hold."""
        return asdict(self)

    def text(self) -> str:
        """Lines for a terminal."""
        size = f"{self.width} x {self.height} pixels upright" if self.width else "cannot be opened"
        quality = f", JPEG quality about {self.jpeg_quality:g}" if self.jpeg_quality else ""
        lines = [
            f"{self.path}: {self.codec or 'no usable image'}, {self.bytes} bytes, {size}{quality}",
            f"sha-256 {self.sha256}, split {self.split}",
            f"orientation: {'none stored' if self.orientation is None else f'{self.orientation} stored'}",
            "tags:",
            *(f"  {words_of(name):<17}{_told(tag)}" for name, tag in self.tags.items()),
        ]
        if self.focal_length_35mm is not None:
            lines.append(f"  (35 mm equivalent {self.focal_length_35mm} mm; not used as a focal length)")
        lines.append(f"faces ({self.faces_from}): {len(self.faces) or 'none'}")
        for i, face in enumerate(self.faces):
            box = ", ".join(f"{value:.0f}" for value in face.box)
            score = "" if face.score is None else f", score {face.score:.2f}"
            lines.append(f"  {i}: x, y, w, h = {box}{score}{', ' + face.problem if face.problem else ''}")
        verdict = "yes" if self.taken else f"no: {self.reason}, {self.detail}"
        return "\n".join([*lines, f"would be ingested: {verdict}"])


def inspect_file(path: Path, config: IngestConfig, annotations: Annotations | None = None) -> Inspection:
    """What ingest with ``config`` understands of an image file.

    ``annotations`` is what its source says of it; without it, the faces of the sidecar beside it, if there is one.

    Raises:
        OSError: the file cannot be read.
        SandboxError: the decoding process cannot be started (a locator's model file, say).
    """
    data = path.read_bytes()
    digest = hashlib.sha256(data).hexdigest()
    photo = Photo(path.name, path.parent.name, digest, split_of(digest, config.split_seed, config.splits))
    header, fields = _header(data, config), read_fields(data)
    faces_from, outcome = _outcome(path, photo, data, annotations, config)
    whole = next(((reason, detail) for face, reason, detail in outcome.rejected if face is None), None)
    if whole is None and not len(outcome.rows):
        whole = outcome.rejected[0][1:]
    if whole is not None and whole[0] == "no_usable_tag":  # the rest is still worth telling
        untagged = config.model_copy(update={"kind": "generated"})
        faces_from, outcome = _outcome(path, photo, data, annotations, untagged)
    problems = {face: f"{reason}: {detail}" for face, reason, detail in outcome.rejected}
    return Inspection(
        path=str(path),
        bytes=len(data),
        sha256=digest,
        split=photo.split,
        codec=header.codec if header else None,
        width=header.width if header else None,
        height=header.height if header else None,
        jpeg_quality=header.jpeg_quality if header else None,
        orientation=fields.get(ORIENTATION),
        tags=_tags(fields, annotations),
        focal_length_35mm=number(fields.get(FOCAL_LENGTH_35MM)),
        faces_from=faces_from,
        faces=[FaceFound(face.box, face.score, problems.get(i, "")) for i, face in enumerate(outcome.found)],
        taken=whole is None,
        reason="" if whole is None else whole[0],
        detail="" if whole is None else whole[1],
    )


def _tags(fields: Fields, annotations: Annotations | None) -> dict[str, TagReport]:
    said = {} if annotations is None or annotations.exif is None else annotations.exif
    readings = explain(fields)
    return {tag.name: _tag(tag, readings[tag.name], said.get(tag.name)) for tag in EXIF_TAGS}


def _tag(tag: ExifTag, reading: Reading, said: float | str | None) -> TagReport:
    if said is not None:
        return TagReport(said, tag.unit, "what the source says", said, "")
    field = None if reading.field is None else FIELD_NAMES[reading.field]
    return TagReport(reading.value, tag.unit, field, reading.stored, reading.why)


def _header(data: bytes, config: IngestConfig) -> ImageFile | None:
    try:
        return open_image(data, config.max_pixels, config.max_bytes)
    except Rejected:
        return None


def _outcome(
    path: Path, photo: Photo, data: bytes, annotations: Annotations | None, config: IngestConfig
) -> tuple[str, Outcome]:
    """Where the faces come from, and what becomes of the photo."""
    faces_from, sidecar = "the source", sidecar_of(path)
    if annotations is None and sidecar.is_file():
        faces_from = sidecar.name
        try:
            annotations = Annotations(faces=parse_sidecar(sidecar.read_bytes()))
        except Rejected as error:
            return faces_from, Outcome(photo.path, rejected=[(None, error.reason, error.detail)])
    annotations = annotations or Annotations()
    with PhotoProcess(config) as process:
        return config.locator if annotations.faces is None else faces_from, process.process(photo, data, annotations)


def _told(tag: TagReport) -> str:
    if tag.value is None:
        return "absent: " + (tag.why if tag.field is None else f"{tag.field} holds {tag.stored!r}, {tag.why}")
    shown = f"{tag.value:g}" if isinstance(tag.value, float) else tag.value
    return f"{shown}{' ' + tag.unit if tag.unit else ''} (from {tag.field} = {tag.stored!r})"
