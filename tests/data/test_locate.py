"""Locators: the cascades on real photographs, YuNet through a real network file, MediaPipe's results as documented."""

import json
import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import cv2
import numpy as np
import pytest

from blades_dist.config import IngestConfig
from blades_dist.data import locate_models
from blades_dist.data.decode import open_image
from blades_dist.data.locate import LOCATE_SIDE, check_locator, find_faces, locate, make_locator
from blades_dist.data.locate_models import LocatorError, detector_face, mesh_face, yunet_faces
from tests.data.conftest import encoded
from tests.data.onnx_model import POINTS, yunet_like


@pytest.fixture(scope="module")
def yunet(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("models") / "yunet.onnx"
    file.write_bytes(yunet_like())
    return file


def configured(locator: str, model: Path | None) -> IngestConfig:
    return IngestConfig.model_validate(
        {"source": "photos", "output": "shards", "locator": locator, "locator_model": model}
    )


def test_nothing_is_located_in_noise_and_tiny_photos() -> None:
    haar = make_locator("haar")
    assert locate(np.full((300, 200, 3), 128, np.uint8), haar) == []
    assert locate(np.zeros((1, 1, 3), np.uint8), haar) == []
    assert locate(np.zeros((3000, 2, 3), np.uint8), haar) == []
    assert locate(np.zeros((1, 60_000, 3), np.uint8), haar) == []


def test_real_faces_are_located() -> None:
    found = boxes = 0
    for item, data in real_photos(25):
        faces = find_faces(open_image(data, 10**8, 10**8), make_locator("haar"))
        centres = [(f.landmarks.mean(axis=0), f) for f in faces]
        for x, y, w, h in item["faces_xywh"]:
            boxes += 1
            found += any(x < c[0] < x + w and y < c[1] < y + h and 0.5 < f.box[2] / w < 2 for c, f in centres)
    assert found >= 0.75 * boxes


def test_a_large_photo_has_the_faces_of_the_same_one_in_small() -> None:
    """A photo enlarged five times is searched at reduced scale, and its faces lie where the small one's do."""
    ((_, data),) = real_photos(1)
    small = open_image(data, 10**8, 10**8)
    height, width = small.pixels().shape[:2]
    enlarged = cv2.resize(small.pixels(), None, fx=(times := -(-4096 // min(width, height))), fy=times)
    large = open_image(encoded(enlarged, quality=85), 10**9, 10**9)
    picture, factor = large.preview()
    assert factor in (4, 8) and LOCATE_SIDE <= max(picture.shape[:2]) < 2 * LOCATE_SIDE
    haar = make_locator("haar")
    (expected, *_), (found, *_) = find_faces(small, haar), find_faces(large, haar)
    assert np.allclose(np.array(found.box) / times, expected.box, atol=0.15 * expected.box[2])
    assert np.allclose(found.landmarks / times, expected.landmarks, atol=0.15 * expected.box[2])


def real_photos(count: int) -> list[tuple[dict[str, Any], bytes]]:
    """The smallest real photographs with a face, as (what is known, bytes)."""
    folder = Path(os.environ.get("BLADES_REAL_FACES", "../shared/faces"))
    if not (folder / "index.jsonl").is_file():
        pytest.skip(f"no real photographs in {folder} (BLADES_REAL_FACES names another folder)")
    known = [json.loads(line) for line in (folder / "index.jsonl").read_text().splitlines()]
    known = [item for item in known if item["file"].startswith("photographs_with_exif/")]
    small = sorted(known, key=lambda item: (item["width"] * item["height"], item["file"]))[:count]
    return [(item, (folder / item["file"]).read_bytes()) for item in small]


def test_yunet_through_opencv(yunet: Path) -> None:
    check_locator(configured("yunet", yunet))
    photo = np.zeros((192, 256, 3), np.uint8)
    photo[64:96, 128:160] = 255
    (face,) = locate(photo, make_locator("yunet", yunet))
    assert face.box == (128, 64, 32, 32) and face.score == pytest.approx(1, abs=1e-3)
    assert face.landmarks == pytest.approx(np.array(POINTS) * 32 + [128, 64])


def test_yunet_at_reduced_scale(yunet: Path) -> None:
    photo = np.zeros((2048, 4096, 3), np.uint8)
    photo[1024:1152, 2048:2176] = 255
    expected = pytest.approx([2048, 1024, 128, 128])
    assert locate(photo, make_locator("yunet", yunet))[0].box == expected
    large = open_image(encoded(photo, quality=95), 10**8, 10**8)
    picture, factor = large.preview()
    assert picture.shape == (512, 1024, 3) and factor == 4
    (face,) = find_faces(large, make_locator("yunet", yunet))
    assert face.box == expected and face.landmarks[0] == pytest.approx([2080, 1056])


def test_yunet_rows() -> None:
    row = [10, 20, 30, 40, 12, 30, 35, 31, 25, 40, 15, 50, 33, 51, 0.95]
    mirrored = [10, 20, 30, 40, 35, 31, 12, 30, 25, 40, 33, 51, 15, 50, 0.95]
    nothing = [[10, 20, 0, 40, *row[4:]], [np.nan, *row[1:]]]
    first, second = yunet_faces(np.array([row, mirrored, *nothing], np.float32))
    assert first.box == (10, 20, 30, 40) and first.score == pytest.approx(0.95)
    for face in (first, second):  # image left comes first, whatever the network calls it
        assert face.landmarks.tolist() == [[12, 30], [35, 31], [25, 40], [15, 50], [33, 51]]
    assert yunet_faces(None) == yunet_faces(np.empty((0, 15))) == []
    with pytest.raises(LocatorError, match="another model"):
        yunet_faces(np.zeros((1, 5), np.float32))


def test_mediapipe_mesh() -> None:
    points = [(0.5, 0.5)] * 478
    for index, place in {
        33: (0.30, 0.40), 133: (0.40, 0.40), 362: (0.60, 0.40), 263: (0.70, 0.40), 1: (0.5, 0.55),
        61: (0.40, 0.70), 291: (0.60, 0.70), 10: (0.5, 0.2), 152: (0.5, 0.8),
    }.items():  # fmt: skip
        points[index] = place
    face = mesh_face(points, 200, 100)
    assert face.box == pytest.approx((60, 20, 80, 60)) and face.score is None
    assert face.landmarks == pytest.approx(np.array([[70, 40], [130, 40], [100, 55], [80, 70], [120, 70]]))


def test_mediapipe_detector() -> None:
    keys = [(0.4, 0.4), (0.6, 0.4), (0.5, 0.5), (0.5, 0.65), (0.3, 0.45), (0.7, 0.45)]
    face = detector_face((60, 20, 80, 60), keys, 0.8, 200, 100)
    assert (face.box, face.score) == ((60, 20, 80, 60), 0.8)
    assert face.landmarks == pytest.approx(np.array([[80, 40], [120, 40], [100, 50], [83.2, 65], [116.8, 65]]))


@pytest.mark.parametrize("suffix", [".task", ".tflite"])
def test_mediapipe_through_a_stand_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, suffix: str) -> None:
    """The calls that are made of MediaPipe, answered in its result classes' shape (it brings no model to run)."""
    keys = [SimpleNamespace(x=x, y=0.5) for x in (0.4, 0.6, 0.5, 0.5, 0.3, 0.7)]
    box = SimpleNamespace(origin_x=10, origin_y=20, width=30, height=40)
    detection = SimpleNamespace(bounding_box=box, keypoints=keys, categories=[SimpleNamespace(score=0.7)])
    result = SimpleNamespace(
        detections=[detection], face_landmarks=[[SimpleNamespace(x=i / 478, y=0.5) for i in range(478)]]
    )
    task = SimpleNamespace(create_from_options=lambda options: SimpleNamespace(detect=lambda image: result))
    stand_in = SimpleNamespace(
        Image=lambda image_format, data: data,
        ImageFormat=SimpleNamespace(SRGB=1),
        BaseOptions=lambda model_asset_path: model_asset_path,
        FaceLandmarker=task,
        FaceDetector=task,
        FaceLandmarkerOptions=lambda base_options, num_faces: base_options,
        FaceDetectorOptions=lambda base_options: base_options,
    )
    monkeypatch.setattr(locate_models.importlib, "import_module", lambda name: stand_in)
    model = tmp_path / f"model{suffix}"
    model.write_bytes(b"any")
    (face,) = make_locator("mediapipe", model).find(np.zeros((100, 200, 3), np.uint8))
    assert (face.score is None) == (suffix == ".task")
    assert suffix == ".task" or face.box == (10, 20, 30, 40)


@pytest.mark.parametrize(
    ("locator", "name", "told"),
    [
        ("yunet", None, "face_detection_yunet_2023mar.onnx"),
        ("yunet", "missing.onnx", "is not a file"),
        ("yunet", "junk.onnx", "cannot be used by yunet"),
        ("yunet", "junk.task", "does not end in .onnx"),
        ("mediapipe", "missing.task", "face_landmarker.task"),
        ("mediapipe", "junk.onnx", ".task or .tflite"),
        ("mediapipe", "junk.task", "mediapipe"),
    ],
)
def test_unusable_models_are_told_at_once(tmp_path: Path, locator: str, name: str | None, told: str) -> None:
    if name and name.startswith("junk"):
        (tmp_path / name).write_bytes(b"this is no model")
    with pytest.raises(LocatorError, match=told):
        make_locator(locator, None if name is None else tmp_path / name)


def test_another_network_is_told_at_once(tmp_path: Path) -> None:
    file = tmp_path / "other.onnx"
    file.write_bytes(yunet_like().replace(b"kps_32", b"abc_32"))
    with pytest.raises(LocatorError, match="cannot be used by yunet"):
        check_locator(configured("yunet", file))
