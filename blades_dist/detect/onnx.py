"""A detector as one ONNX file, encoder and head together, and the proof that it computes the same.

Input ``images`` (B, 3, S, S), B free: what ``FrozenEncoder.prepare`` gives. Outputs ``score`` (B,) float64, larger is
more like a photograph; ``features`` (B, D) float32; ``logits`` (B, C) of the pretext tasks, for encoders that have
them. What else a verdict needs is metadata of the file: see ``metadata``.
"""

import importlib
import json
import logging
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from blades_dist.detect.detector import Detector
from blades_dist.detect.heads import HEADS
from blades_dist.detect.heads.base import Head, ProbabilityHead
from blades_dist.models.export import FrozenEncoder, encoder_digest

OPSET = 20
TOLERANCE = 1e-4


@dataclass(frozen=True)
class Differences:
    """Largest differences between torch and onnxruntime on ``n`` pictures: absolute ones of features and logits,
    those of scores relative to max(1, |score|), as log-likelihoods are in the thousands.
    """

    n: int
    score: float
    features: float
    logits: float

    @property
    def equal(self) -> bool:
        """Whether all are within ``TOLERANCE``; not so if one is not a number."""
        return bool(np.array([self.score, self.features, self.logits]).max() <= TOLERANCE)


def export_detector(detector: Detector, path: Path) -> Differences:
    """Writes a detector as ``path``; see ``export_onnx``, which also says what is raised."""
    return export_onnx(detector.encoder, detector.head, path, metadata(detector))


def metadata(detector: Detector) -> dict[str, str]:
    """What a verdict needs besides scores, each value JSON.

    ``detector`` (its id), ``kind``, ``fpr`` (the configured rate), ``thresholds`` (faces that score below are flagged
    at the rate; null where there were too few faces to calibrate it), ``calibration_faces``.
    """
    thresholds = {f"{fpr:g}": value for fpr, value in detector.calibration.thresholds.items()}
    values = {
        "detector": detector.id,
        "kind": detector.info.kind,
        "fpr": detector.info.fpr,
        "thresholds": thresholds,
        "calibration_faces": len(detector.calibration.scores),
    }
    return {name: json.dumps(value) for name, value in values.items()}


def export_onnx(encoder: FrozenEncoder, head: Head, path: Path, notes: Mapping[str, str]) -> Differences:
    """Writes encoder and head as ``path`` and compares the file with torch on random pictures.

    ``notes`` become metadata of the file, beside those of the encoder (``image_size``, ``resize``, ``input``,
    ``classes``, ``encoder``: its digest) and of the head (``temperature``: probability of AI-generated is
    sigmoid(-score / temperature)), each value JSON.

    Raises:
        ImportError: the packages of the extra ``onnx`` are not installed.
        ValueError: the head has no graph, or the file does not compute the same; ``path`` is not written then.
    """
    program = _traced(encoder, head)
    program.model.metadata_props.update({**_encoder_notes(encoder), **_head_notes(head), **notes})
    partial = path.with_name(f".{path.name}.partial")
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        program.save(str(partial), external_data=False)
        found = compare(partial, encoder, head)
        if not found.equal:
            raise ValueError(f"the exported graph does not compute what torch does: {found}; nothing was written")
        partial.rename(path)
    finally:
        partial.unlink(missing_ok=True)
    return found


def compare(path: Path, encoder: FrozenEncoder, head: Head, n: int = 4, seed: int = 1) -> Differences:
    """Differences between an exported file and torch on ``n`` random pictures, as one batch and the first one alone.

    Raises:
        ImportError: onnxruntime is not installed.
    """
    onnxruntime = _package("onnxruntime")
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    pictures = _pictures(encoder, n, seed)
    names = [output.name for output in session.get_outputs()]
    largest = np.zeros(3)
    for images in (pictures, pictures[:1]):
        answers = dict(zip(names, session.run(None, {"images": images.numpy()}), strict=True))
        features = encoder.features(images)
        scores = head.score(features.cpu().numpy())
        logits = encoder.logits(features).cpu().numpy()
        gaps = [
            np.abs(answers["score"] - scores) / np.maximum(1, np.abs(scores)),
            np.abs(answers["features"] - features.cpu().numpy()),
            np.abs(answers.get("logits", logits) - logits),
        ]
        largest = np.maximum(largest, [gap.max(initial=0) for gap in gaps])
    return Differences(n, *map(float, largest))


def head_graph(head: Head) -> nn.Module:
    """A module from (B, D) float32 features to (B,) float64 scores, those of ``head.score`` up to rounding.

    Raises:
        ValueError: a kind of head that has no graph.
    """
    graph = head.onnx()
    if graph is None:
        known = ", ".join(kind.__name__ for kind in HEADS.values() if kind.onnx is not Head.onnx)
        raise ValueError(f"a {type(head).__name__} cannot be exported to ONNX; heads that can: {known}")
    return graph.eval()


class _Graph(nn.Module):
    def __init__(self, encoder: FrozenEncoder, head: Head) -> None:
        super().__init__()
        self.encoder, self.head = encoder, head_graph(head)
        self.with_logits = bool(encoder.info.classes)

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        features, logits = self.encoder(images)
        score = self.head(features)
        return (score, features, logits) if self.with_logits else (score, features)


def _traced(encoder: FrozenEncoder, head: Head) -> Any:
    """torch's exported program of both, the batch size left open."""
    for name in ("onnx", "onnxscript"):
        _package(name)
    graph = _Graph(encoder, head).eval()
    exporter = logging.getLogger("torch.onnx")
    before = exporter.level
    exporter.setLevel(logging.ERROR)  # it warns that torchvision, which nothing here uses, is not installed
    try:
        with torch.no_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)
            return torch.onnx.export(
                graph,
                (_pictures(encoder, 2, 0),),
                dynamo=True,
                verbose=False,
                opset_version=OPSET,
                input_names=["images"],
                output_names=["score", "features", "logits"][: 3 if graph.with_logits else 2],
                dynamic_shapes=({0: torch.export.Dim("batch")},),
            )
    finally:
        exporter.setLevel(before)


def _encoder_notes(encoder: FrozenEncoder) -> dict[str, str]:
    info = encoder.info
    side = info.image_size
    kind = "uint8" if encoder.input_dtype == torch.uint8 else "float32 in 0..1"
    values = {
        "image_size": side,
        "resize": info.resize,
        "input": f"face crops, RGB, {kind}, (B, 3, {side}, {side})",
        "classes": info.classes,
        "encoder": encoder_digest(encoder),
    }
    return {name: json.dumps(value) for name, value in values.items()}


def _head_notes(head: Head) -> dict[str, str]:
    return {"temperature": json.dumps(head.temperature)} if isinstance(head, ProbabilityHead) else {}


def _pictures(encoder: FrozenEncoder, n: int, seed: int) -> Tensor:
    size, random = encoder.info.image_size, torch.Generator().manual_seed(seed)
    if encoder.input_dtype == torch.uint8:
        return torch.randint(0, 256, (n, 3, size, size), dtype=torch.uint8, generator=random)
    return torch.rand(n, 3, size, size, generator=random)


def _package(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise ImportError(
            f"ONNX export needs onnx, onnxscript and onnxruntime ({error}); they are the extra 'onnx': "
            "pip install 'blades_dist[onnx]'"
        ) from None
