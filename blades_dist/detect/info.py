"""What ``detector.json`` holds: everything about a detector but its arrays."""

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict

from blades_dist.detect.calibrate import Rate
from blades_dist.models.encoder_info import Resize

SCHEMA_VERSION = 2


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
    """How a photo becomes the encoder's input. Sides in pixels; ``crop_scale`` is side of crop over side of box.

    ``locator_model`` is the bundle's own file for a locator that needs one. Every face is judged as it is and after
    each of ``re_encodings`` (``perturb`` specs). ``ordinal_edges`` are the bins that EXIF values fell into in training.
    """

    image_size: int
    resize: Resize
    crop_scale: float
    min_face_px: int
    locator: Literal["haar", "yunet", "mediapipe"]
    locator_model: str | None = None
    re_encodings: tuple[str, ...] = ()
    ordinal_edges: dict[str, tuple[float, float]] = {}


class Training(_Section):
    """On how many faces the head was fitted, and how well: log-likelihoods are means per face in nats.

    ``notes`` are what a reader of the figures must know, such as a fit that did not converge.
    """

    split: str
    real: int
    sources: dict[str, int]
    generated: dict[str, int]
    figures: dict[str, float]
    notes: tuple[str, ...] = ()


class Provenance(_Section):
    """Digests are sha-256; ``config`` is the resolved fit configuration, ``encoder`` that of the pretraining."""

    manifest_digest: str
    generated_digest: str | None
    encoder_digest: str
    encoder: dict[str, Any]
    config: dict[str, Any]
    code_version: str


class DetectorInfo(_Section):
    """Index of a bundle; ``files`` holds the sha-256 of every other file in it. ``kind`` is one of ``detect.heads``,
    which is asked when the head is read; ``covariance`` is a mixture's type.

    ``unsure_rate``: of the photographs of ``measured_split``, how many get no verdict at ``fpr``; ``flagged_rate``: how
    many are called AI-generated after re-encodings have had their say.
    """

    schema_version: Literal[2] = 2
    kind: str
    covariance: Literal["full", "tied", "diag", "spherical"] | None
    fpr: float
    unsure_fpr: float | None
    operating_points: list[OperatingPoint]
    calibration: CalibrationSummary
    measured_split: str
    flagged_rate: Rate | None
    unsure_rate: Rate | None
    consistency_tags: tuple[str, ...]
    preprocessing: Preprocessing
    labels: dict[str, list[str]]
    training: Training
    provenance: Provenance
    files: dict[str, str] = {}

    def measured(self, fpr: float) -> Rate | None:
        """The measured rate of an operating point; None if it has none."""
        return next((point.measured for point in self.operating_points if point.fpr == fpr), None)


def migrate(content: dict[str, Any]) -> dict[str, Any]:
    """The content of an older ``detector.json`` in the present schema; a present one as it is.

    Version 1 knew neither re-encodings, an unsure band nor EXIF consistency: its detectors keep judging as they did.

    Raises:
        ValueError: a version that this code does not know.
    """
    version = content.get("schema_version")
    if version == SCHEMA_VERSION:
        return content
    if version != 1:
        raise ValueError(f"schema version {version!r}; this code reads versions 1 to {SCHEMA_VERSION}")
    shape = content.get("preprocessing")
    added: dict[str, Any] = {"schema_version": SCHEMA_VERSION, "unsure_fpr": None, "consistency_tags": ()}
    added |= {"flagged_rate": None, "unsure_rate": None}
    if isinstance(shape, dict):
        added["preprocessing"] = {**shape, "resize": "area"}
    return content | added
