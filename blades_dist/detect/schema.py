"""Answers as documents: what the predict job prints and the service sends. No torch here, as a server needs none."""

from pydantic import BaseModel, ConfigDict

from blades_dist.data.credentials import Credentials
from blades_dist.detect.calibrate import Verdict
from blades_dist.detect.preprocess import FacesFrom


class _Report(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class DetectorReference(_Report):
    """Which detector answered; ``kind`` of its head is one of ``detect.heads``, ``id`` the sha-256 of its
    ``detector.json``."""

    id: str
    kind: str
    code_version: str


class ExifClaim(_Report):
    """What the file claims for one tag, the probability that the pixels of this face give to it, and its p-value."""

    claimed: str
    probability: float
    p_value: float | None


class ExifReport(_Report):
    """Whether the pixels of a face fit what its file claims; see ``consistency``. No part of the verdict."""

    tags: dict[str, ExifClaim]
    p_value: float | None
    compared_with: int


class FaceReport(_Report):
    """One face. ``face`` counts from 1; ``box`` (x, y, w, h) and ``landmarks`` (5 x (x, y)) in pixels of the upright
    image; ``exif_consistency`` where the file carries EXIF that the detector knows; the rest as in
    ``detector.FaceResult``."""

    face: int
    box: tuple[float, float, float, float]
    landmarks: list[tuple[float, float]] | None
    verdict: Verdict
    score: float
    probability: float | None
    p_value: float
    re_encoded: dict[str, float]
    threshold: float | None
    fpr: float
    unsure_because: tuple[str, ...]
    read_outs: dict[str, dict[str, float]]
    exif_consistency: ExifReport | None


class ImageReport(_Report):
    """One image file. ``width`` and ``height`` in pixels after EXIF orientation; ``bytes`` of the file;
    ``faces_too_small`` were seen and not judged; ``credentials`` where the file has some and they can be read."""

    sha256: str
    bytes: int
    width: int
    height: int
    codec: str
    jpeg_quality: float | None
    faces_from: FacesFrom
    faces_too_small: int
    detector: DetectorReference
    credentials: Credentials | None
    faces: list[FaceReport]
