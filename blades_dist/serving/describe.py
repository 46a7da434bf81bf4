"""What ``GET /v1/models`` says of a detector. No Ray here."""

from blades_dist.detect.detector import Detector
from blades_dist.detect.inspect import reference
from blades_dist.serving.drift import calibration_histogram
from blades_dist.serving.schema import ModelInfo, OperatingPointInfo

_UNITS = {
    "oc": "log-likelihood (nats)",
    "mahalanobis": "negative squared Mahalanobis distance",
    "knn": "negative distance to the nearest real faces",
    "bc": "logit of photograph",
    "linear": "logit of photograph",
}


def describe(name: str, default: bool, detector: Detector) -> ModelInfo:
    """A detector as ``GET /v1/models`` shows it."""
    info = detector.info
    return ModelInfo(
        name=name,
        default=default,
        detector=reference(detector),
        fpr=info.fpr,
        unsure_fpr=info.unsure_fpr,
        smallest_fpr=info.calibration.smallest_fpr,
        calibration_faces=info.calibration.n,
        operating_points=[OperatingPointInfo(fpr=p.fpr, threshold=p.threshold) for p in info.operating_points],
        labels=info.labels,
        score_unit=_UNITS[info.kind],
        histogram=calibration_histogram(detector.calibration.scores),
    )
