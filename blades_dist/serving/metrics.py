"""What Prometheus can ask for, at Ray's own metrics endpoint; Serve adds deployment and replica to every series."""

from collections.abc import Sequence

from ray.serve.metrics import Counter, Gauge, Histogram

from blades_dist.serving.middleware import RequestRecord

_SECONDS = [0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30]


class RequestMetrics:
    """Requests by route, status and reason, and how long they took."""

    def __init__(self) -> None:
        self._count = Counter(
            "blades_requests", "Requests that were answered, by outcome.", tag_keys=("path", "status", "reason")
        )
        self._seconds = Histogram(
            "blades_request_seconds", "Seconds from a request's header to its answer.", _SECONDS, tag_keys=("path",)
        )

    def observe(self, record: RequestRecord) -> None:
        """Counts one request."""
        tags = {"path": record.route, "status": str(record.status), "reason": record.reason or "none"}
        self._count.inc(1, tags)
        self._seconds.observe(record.seconds, {"path": record.route})


class DecodeMetrics:
    """Seconds a file, and how often the decoding process had to be replaced."""

    def __init__(self) -> None:
        self._seconds = Histogram("blades_decode_seconds", "Seconds to decode a file and find its faces.", _SECONDS)
        self._killed = Counter("blades_decoder_failures", "Files that the decoding process did not survive.")

    def decoded(self, seconds: float, failures: int) -> None:
        """One file, which took the process down ``failures`` times."""
        self._seconds.observe(seconds)
        if failures:
            self._killed.inc(failures)


class ModelMetrics:
    """Batches, scores and drift of one bundle's replica, and how its shadow agrees."""

    def __init__(self, model: str) -> None:
        self._tags = {"model": model}
        self._batch = Histogram(
            "blades_batch_faces", "Faces judged together.", [1, 2, 4, 8, 16, 32, 64], tag_keys=("model",)
        )
        self._faces = Counter("blades_faces", "Faces judged.", tag_keys=("model",))
        # Scores have another unit for every kind of head, and Ray's histograms take positive bounds only. A p-value is
        # the score's rank among real faces: of faces like the calibration ones a tenth falls into each tenth.
        edges = [0.001, 0.005, 0.01, 0.05, *(i / 10 for i in range(1, 10))]
        self._p_values = Histogram(
            "blades_p_value", "Scores as their rank among real calibration faces.", edges, tag_keys=("model",)
        )
        self._drift = Gauge(
            "blades_drift_psi", "Population stability index of the latest scores against calibration.", ("model",)
        )
        self._shadow = Counter("blades_shadow_faces", "Faces by what the shadow made of them.", ("model", "outcome"))

    def batch(self, faces: int) -> None:
        """One batch of so many faces."""
        self._batch.observe(faces, self._tags)
        self._faces.inc(faces, self._tags)

    def scored(self, p_values: Sequence[float], drift: float | None) -> None:
        """The p-values of one image's faces, and the index after them."""
        for value in p_values:
            self._p_values.observe(value, self._tags)
        if drift is not None:
            self._drift.set(drift, self._tags)

    def shadow(self, outcome: str, faces: int) -> None:
        """So many faces that the shadow ``agreed`` or ``disagreed`` on, ``failed`` at, or that were ``left_out``."""
        self._shadow.inc(faces, self._tags | {"outcome": outcome})
