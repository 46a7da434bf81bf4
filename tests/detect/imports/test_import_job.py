"""A published checkpoint to a calibrated detector in one command, and its answers against a direct computation."""

from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from sklearn.mixture import GaussianMixture
from torch import Tensor

from blades_dist.data.records import read_manifest
from blades_dist.detect.detector import Detector, load_detector
from blades_dist.detect.features import stored_faces
from blades_dist.testing.toy_detector import write_photographs, write_shards
from tests.detect.imports.published import (
    State,
    binary_state,
    normalised,
    perceptron,
    released_images,
    released_state,
    resnet50,
    resnet50_forward,
)
from tests.jobs import run_job

pytestmark = pytest.mark.ray
FEW = ["fpr=0.1", "unsure_fpr=null", "re_encodings=[]"]  # what a dozen calibration faces support
IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("photographs")
    write_photographs(root / "photos" / "camera", range(36))
    write_shards(root / "photos", root / "shards")
    return root / "shards"


@pytest.fixture(scope="module")
def oc() -> State:
    return released_state()


def crops(shards: Path, split: str) -> list[np.ndarray]:
    parts = [stored_faces(shards / s.name, 0, len(s.row_groups)) for s in read_manifest(shards).split(split)]
    return [pixels for part in parts for _, pixels in part]


def features(state: State, faces: list[np.ndarray]) -> Tensor:
    """(n, 768) as the released code computes them."""
    visual = {name.removeprefix("model.visual."): value for name, value in state.items() if "model.visual." in name}
    return F.normalize(torch.cat([resnet50_forward(visual, released_images([face])) for face in faces]), dim=1)


def imported(state: State, name: str, shards: Path, folder: Path, *more: str) -> Detector:
    torch.save({"model": state}, folder / name)
    done = run_job("import_checkpoint.py", folder / name, f"output={folder / 'out'}", f"shards={shards}", *FEW, *more)
    assert done.returncode == 0, done.stderr
    assert str(folder / "out" / "detector") in done.stdout
    return load_detector(folder / "out" / "detector")


def prepared(detector: Detector, faces: list[np.ndarray]) -> np.ndarray:
    return np.stack([detector.encoder.prepare(face) for face in faces])


def test_oc(shards: Path, oc: State, tmp_path: Path, ray_cluster: None) -> None:
    detector = imported(
        oc, "OC.pth", shards, tmp_path, "oc.n_components=2", "oc.covariance_type=full", "oc.n_pca_components=4"
    )
    assert detector.info.kind == "oc" and detector.info.training.real == len(crops(shards, "train"))
    faces = crops(shards, "calibration")
    direct = features(oc, faces)
    found = detector.encoder.features(torch.from_numpy(prepared(detector, faces)))
    torch.testing.assert_close(found, direct, rtol=0, atol=1e-5)
    # scikit-learn's own mixture with the fitted numbers, in the whitened space they were fitted in.
    head = detector.head.tensors()
    rows = ((direct.numpy().astype(float) - head["whitening.mean"]) @ head["whitening.components"].T) / head[
        "whitening.scale"
    ]
    mixture = GaussianMixture(2, covariance_type="full")
    mixture.weights_, mixture.means_ = head["weights"], head["means"]
    mixture.precisions_cholesky_ = head["precisions"]
    expected = mixture.score_samples(rows)
    scores = [answer.score for answer in detector.detect(prepared(detector, faces))]
    assert np.ptp(expected) > 1
    np.testing.assert_allclose(scores, expected, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(detector.calibration.scores, np.sort(expected), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kind", ["bc", "cnndetection"])
def test_heads_of_a_file(shards: Path, oc: State, tmp_path: Path, ray_cluster: None, kind: str) -> None:
    """The released perceptron, and one logit on a ResNet-50."""
    faces = crops(shards, "calibration")
    if kind == "bc":
        detector, layers = imported(binary_state(oc), "BC.pth", shards, tmp_path), perceptron()
        hidden = F.relu(F.linear(features(oc, faces), layers["fc1.weight"], layers["fc1.bias"]))
        probability = F.linear(hidden, layers["fc2.weight"], layers["fc2.bias"]).softmax(1)[:, 1]
    else:
        state = resnet50(1, seed=3)
        state["fc.weight"] *= 0.01  # probabilities that are not all 1
        detector = imported(state, "published.pth", shards, tmp_path)
        images = torch.from_numpy(prepared(detector, faces)).float() / 255
        probability = resnet50_forward(state, normalised(images, *IMAGENET))[:, 0].sigmoid()
    assert detector.info.kind == {"bc": "bc", "cnndetection": "linear"}[kind] and detector.info.training.real == 0
    answers = detector.detect(prepared(detector, faces))
    assert probability.max() - probability.min() > 1e-3
    np.testing.assert_allclose([answer.probability for answer in answers], probability.numpy(), rtol=0, atol=1e-5)
    # Calibrated on those faces: sorted scores are the log-odds of photographic.
    odds = np.sort(torch.logit(1 - probability.double()).numpy())
    np.testing.assert_allclose(detector.calibration.scores, odds, rtol=0, atol=1e-3)
    rate = detector.info.measured(0.1)
    assert rate is not None and rate.n == len(crops(shards, "val"))
    assert "was imported" in (tmp_path / "out" / "detector" / "README.md").read_text()
