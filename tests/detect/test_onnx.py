"""Encoder and head as one ONNX graph, run by onnxruntime, against torch."""

import json
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import ViTConfig, ViTModel

from blades_dist.detect.detector import load_detector, save_detector
from blades_dist.detect.heads.base import Head
from blades_dist.detect.heads.knn import KnnHead
from blades_dist.detect.heads.linear import LinearHead
from blades_dist.detect.heads.mahalanobis import MahalanobisHead
from blades_dist.detect.heads.mixture import Covariance, MixtureHead, Whitening
from blades_dist.detect.heads.perceptron import PerceptronHead
from blades_dist.detect.onnx import export_onnx, head_graph
from blades_dist.models.export import FrozenEncoder, open_encoder
from blades_dist.testing.toy_detector import tiny_encoder, toy_detector, unit_rows
from tests.jobs import run_job

onnxruntime = pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")

D = 16
RANDOM = np.random.default_rng(8)


def mixture(covariance: Covariance, pca: int | None = None) -> MixtureHead:
    p, k = pca or D, 3
    upper = np.triu(RANDOM.normal(size=(k, p, p)), 1) + np.eye(p) * RANDOM.uniform(5, 20, (k, 1, p))
    scales = RANDOM.uniform(5, 20, (k, p))
    factors = {"full": upper, "tied": upper[0], "diag": scales, "spherical": scales[:, 0]}[covariance]
    whitening = pca and Whitening(RANDOM.normal(size=D), RANDOM.normal(size=(p, D)), RANDOM.uniform(0.1, 1, p))
    means = RANDOM.normal(size=(k, p)) * (1.0 if pca else 0.2)
    return MixtureHead(covariance, np.array([0.2, 0.3, 0.5]), means, factors, whitening or None)


HEADS: dict[str, Callable[[], Head]] = {
    "full": lambda: mixture("full"),
    "tied": lambda: mixture("tied"),
    "diag": lambda: mixture("diag"),
    "spherical": lambda: mixture("spherical"),
    "whitened full": lambda: mixture("full", 5),
    "whitened spherical": lambda: mixture("spherical", 5),
    "mahalanobis": lambda: MahalanobisHead(RANDOM.normal(size=D), mixture("tied").precisions),
    "nearest": lambda: KnnHead(unit_rows(50, D), np.array([0.0, 0.0, 1.0])),
    "mean of nearest": lambda: KnnHead(unit_rows(50, D), np.full(4, 0.25)),
    "bc": lambda: PerceptronHead(
        *(RANDOM.normal(size=size) for size in ((7, D), (7,), (2, 7), (2,))),  # type: ignore[misc]
        temperature=1.7,
    ),
    "linear": lambda: LinearHead(RANDOM.normal(size=D), np.array([0.3]), temperature=0.5),
}


@pytest.mark.parametrize("name", HEADS)
def test_a_heads_graph_is_its_score(name: str) -> None:
    head, rows = HEADS[name](), unit_rows(40, D, seed=3)
    np.testing.assert_allclose(head_graph(head)(torch.tensor(rows)).numpy(), head.score(rows), rtol=1e-11, atol=1e-7)


def test_a_mixtures_graph_does_not_overflow() -> None:
    sharp = MixtureHead("spherical", np.array([0.5, 0.5]), np.eye(2, D), np.array([1e3, 1e3]))
    rows = unit_rows(5, D)
    assert sharp.score(rows).max() < -1e4  # exp of it is 0, and of its negative infinite
    np.testing.assert_allclose(head_graph(sharp)(torch.tensor(rows)).numpy(), sharp.score(rows), rtol=1e-11)


def run(path: Path, images: np.ndarray) -> dict[str, np.ndarray]:
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    return dict(zip([each.name for each in session.get_outputs()], session.run(None, {"images": images}), strict=True))


def crops(n: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (n, 3, 32, 32), dtype=np.uint8)


@pytest.mark.parametrize("name", ["whitened full", "tied", "mahalanobis", "mean of nearest", "bc", "linear"])
def test_an_exported_file_equals_torch_at_any_batch_size(tmp_path: Path, name: str) -> None:
    encoder, head = tiny_encoder(), HEADS[name]()
    export_onnx(encoder, head, tmp_path / "x.onnx", {})
    for n in (1, 5):
        answers, images = run(tmp_path / "x.onnx", crops(n, n)), torch.tensor(crops(n, n))
        features = encoder.features(images)
        expected = {"score": head.score(features.numpy()), "features": features, "logits": encoder.logits(features)}
        assert answers["score"].dtype == np.float64 and answers.keys() == expected.keys()
        for key, value in expected.items():
            np.testing.assert_allclose(answers[key], np.asarray(value), rtol=1e-4, atol=1e-4)


def test_an_encoder_of_float_images_without_text_is_exported(tmp_path: Path) -> None:
    config = ViTConfig(
        hidden_size=D, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32, image_size=32, patch_size=16
    )
    ViTModel(config).save_pretrained(tmp_path / "vit")
    whole = open_encoder(f"hf:{tmp_path / 'vit'}", normalise=False)
    encoder = FrozenEncoder(whole.info.model_copy(update={"resize": "bilinear_antialias"}), whole.image)
    head = HEADS["linear"]()
    export_onnx(encoder, head, tmp_path / "x.onnx", {})
    images = np.random.default_rng(1).random((3, 3, 32, 32), np.float32)
    answers, features = run(tmp_path / "x.onnx", images), encoder.features(torch.tensor(images)).numpy()
    assert set(answers) == {"score", "features"}
    np.testing.assert_allclose(answers["features"], features, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(answers["score"], head.score(features), rtol=1e-4, atol=1e-4)


def test_the_job_exports_a_bundle_with_what_a_verdict_needs(tmp_path: Path) -> None:
    save_detector(tmp_path / "detector", toy_detector("bc"))
    detector = load_detector(tmp_path / "detector")
    done = run_job("export_onnx.py", tmp_path / "detector", tmp_path / "out" / "x.onnx")
    assert done.returncode == 0, done.stderr
    assert "largest differences from torch on 4 random pictures" in done.stdout
    session = onnxruntime.InferenceSession(str(tmp_path / "out" / "x.onnx"), providers=["CPUExecutionProvider"])
    notes = {key: json.loads(text) for key, text in session.get_modelmeta().custom_metadata_map.items()}
    assert (notes["detector"], notes["kind"], notes["image_size"]) == (detector.id, "bc", 32)
    assert notes["classes"] == detector.encoder.info.classes and notes["temperature"] == detector.head.temperature
    assert notes["thresholds"] == {f"{fpr:g}": value for fpr, value in detector.calibration.thresholds.items()}
    answers = run(tmp_path / "out" / "x.onnx", crops(6))
    expected = [answer.verdict for answer in detector.detect(crops(6))]
    below = answers["score"] < notes["thresholds"][f"{notes['fpr']:g}"]
    told = [flag if verdict != "unsure" else None for flag, verdict in zip(below, expected, strict=True)]
    assert told == [None if verdict == "unsure" else verdict == "ai_generated" for verdict in expected]


def test_a_head_without_a_graph_is_refused(tmp_path: Path) -> None:
    class Constant(Head):
        dimensions = D

        def score(self, features: np.ndarray) -> np.ndarray:
            return np.zeros(len(features))

        def tensors(self) -> dict[str, np.ndarray]:
            return {}

        @classmethod
        def from_tensors(cls, tensors: object, covariance: str | None = None) -> "Constant":
            return cls()

    with pytest.raises(ValueError, match="a Constant cannot be exported to ONNX; heads that can: MixtureHead"):
        export_onnx(tiny_encoder(), Constant(), tmp_path / "x.onnx", {})
    assert not list(tmp_path.iterdir())


def test_missing_packages_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    with pytest.raises(ImportError, match=r"pip install 'blades_dist\[onnx\]'"):
        export_onnx(tiny_encoder(), HEADS["linear"](), tmp_path / "x.onnx", {})
