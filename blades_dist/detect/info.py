"""What ``detector.json`` holds: everything about a detector but its arrays."""

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict

from blades_dist.detect.calibrate import Rate

SCHEMA_VERSION = 1


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class OperatingPoint(_Section):
    """Faces that score below ``threshold`` are flagged; None: the calibration split is too small for ``fpr``.

    ``measured`` is the rate found on real faces of a third split.
    """

    fpr: float
    threshold: float | None
    measured: Rate | None


class CalibrationSummary(_Section):
    """``quantiles`` of the calibration scores by their percentage; the scores themselves are in the head file."""

    split: str
    n: int
    smallest_fpr: float
    quantiles: dict[str, float]


class Preprocessing(_Section):
    """How a photo becomes the encoder's input. Sides in pixels; ``crop_scale`` is side of crop over side of box."""

    image_size: int
    crop_scale: float
    min_face_px: int
    locator: Literal["haar"]


class Training(_Section):
    """On how many faces the head was fitted, and how well: log-likelihoods are means per face in nats."""

    split: str
    real: int
    sources: dict[str, int]
    generated: dict[str, int]
    figures: dict[str, float]


class Provenance(_Section):
    """Digests are sha-256; ``config`` is the resolved fit configuration, ``encoder`` that of the pretraining."""

    manifest_digest: str
    generated_digest: str | None
    encoder_digest: str
    encoder: dict[str, Any]
    config: dict[str, Any]
    code_version: str


class DetectorInfo(_Section):
    """Index of a bundle; ``files`` holds the sha-256 of every other file in it."""

    schema_version: Literal[1] = 1
    kind: Literal["oc", "bc"]
    covariance: Literal["full", "tied", "diag", "spherical"] | None
    fpr: float
    operating_points: list[OperatingPoint]
    calibration: CalibrationSummary
    measured_split: str
    preprocessing: Preprocessing
    labels: dict[str, list[str]]
    training: Training
    provenance: Provenance
    files: dict[str, str] = {}

    def measured(self, fpr: float) -> Rate | None:
        """The measured rate of an operating point; None if it has none."""
        return next((point.measured for point in self.operating_points if point.fpr == fpr), None)
