"""Locators that need a model file, which the user brings: YuNet through OpenCV, and MediaPipe's face tasks.

Both name landmarks by the person's side (the person's right eye lies at image left); here they are by the image's.
"""

import importlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from blades_dist.data.faces import Face

YUNET_MODEL = "face_detection_yunet_2023mar.onnx of the OpenCV Zoo (models/face_detection_yunet)"
MEDIAPIPE_MODEL = (
    "face_landmarker.task (Face Landmarker) or blaze_face_short_range.tflite (Face Detector), both linked from "
    "MediaPipe's page of the task"
)
YUNET_SCORE = 0.9  # OpenCV's own default
MEDIAPIPE_FACES = 64  # of one photo; the landmarker asks for a bound
_YUNET_COLUMNS = 15  # x, y, w, h, five landmarks, score

# Points of MediaPipe's face mesh; an eye's place is the middle of its corners.
_MESH_EYES = ((33, 133), (362, 263))
_MESH_NOSE, _MESH_MOUTH = 1, (61, 291)


class LocatorError(ValueError):
    """A locator that cannot be used; the message is for the user."""


class YunetLocator:
    """OpenCV's ``FaceDetectorYN``: boxes, five landmarks and a score from one small network."""

    def __init__(self, model: str | None):
        _check_file("yunet", model, (".onnx",), YUNET_MODEL)
        try:
            self._detector = cv2.FaceDetectorYN.create(str(model), "", (320, 320), YUNET_SCORE)
        except cv2.error as error:
            raise _unusable("yunet", model, YUNET_MODEL, error) from None
        self._model = model

    def find(self, rgb: np.ndarray) -> list[Face]:
        try:
            self._detector.setInputSize((rgb.shape[1], rgb.shape[0]))
            _, rows = self._detector.detect(cv2.cvtColor(rgb, cv2.COLOR_RGB2BGR))
        except cv2.error as error:
            raise _unusable("yunet", self._model, YUNET_MODEL, error) from None
        return yunet_faces(rows)


class MediapipeLocator:
    """MediaPipe's Face Landmarker (``.task``), or its Face Detector (``.tflite``), as the model file decides."""

    def __init__(self, model: str | None):
        file = _check_file("mediapipe", model, (".task", ".tflite"), MEDIAPIPE_MODEL)
        try:
            self._mediapipe: Any = importlib.import_module("mediapipe")
            vision: Any = importlib.import_module("mediapipe.tasks.python.vision")
            tasks: Any = importlib.import_module("mediapipe.tasks.python")
        except ImportError as error:
            raise LocatorError(f"locator: mediapipe is not installed ({error}); pip install mediapipe") from None
        base = tasks.BaseOptions(model_asset_path=str(file))
        self._mesh = file.suffix == ".task"
        try:
            if self._mesh:
                options = vision.FaceLandmarkerOptions(base_options=base, num_faces=MEDIAPIPE_FACES)
                self._task = vision.FaceLandmarker.create_from_options(options)
            else:
                self._task = vision.FaceDetector.create_from_options(vision.FaceDetectorOptions(base_options=base))
        except (OSError, RuntimeError, ValueError) as error:
            raise _unusable("mediapipe", model, MEDIAPIPE_MODEL, error) from None

    def find(self, rgb: np.ndarray) -> list[Face]:
        height, width = rgb.shape[:2]
        picture = self._mediapipe.Image(image_format=self._mediapipe.ImageFormat.SRGB, data=np.ascontiguousarray(rgb))
        result = self._task.detect(picture)
        if self._mesh:
            return [mesh_face([(p.x, p.y) for p in points], width, height) for points in result.face_landmarks]
        faces = []
        for found in result.detections:
            box = found.bounding_box
            points = [(p.x, p.y) for p in found.keypoints]
            score = found.categories[0].score if found.categories else None
            faces.append(
                detector_face((box.origin_x, box.origin_y, box.width, box.height), points, score, width, height)
            )
        return faces


def yunet_faces(rows: np.ndarray | None) -> list[Face]:
    """Faces of YuNet's (n, 15) rows: box, person's right eye, left eye, nose tip, right and left mouth corner, score.

    Boxes that have no area or are not finite are left out.
    """
    if rows is None or len(rows) == 0:
        return []
    if rows.ndim != 2 or rows.shape[1] != _YUNET_COLUMNS:
        raise LocatorError(f"locator: yunet gave rows of shape {rows.shape}, not (n, {_YUNET_COLUMNS}): another model?")
    faces = []
    for row in np.asarray(rows, np.float64):
        x, y, w, h = (float(value) for value in row[:4])
        if np.isfinite(row).all() and w > 0 and h > 0:
            faces.append(Face((x, y, w, h), by_image_side(row[4:14].reshape(5, 2)), float(row[14])))
    return faces


def mesh_face(points: Sequence[tuple[float, float]], width: int, height: int) -> Face:
    """A face of MediaPipe's mesh: points as shares of the picture's width and height. The box holds every point."""
    mesh = np.array(points, np.float64) * np.array([width, height])
    x, y = mesh.min(axis=0)
    w, h = mesh.max(axis=0) - (x, y)
    eyes = [mesh[list(corners)].mean(axis=0) for corners in _MESH_EYES]
    five = np.array([*eyes, mesh[_MESH_NOSE], *(mesh[i] for i in _MESH_MOUTH)])
    return Face((float(x), float(y), float(w), float(h)), by_image_side(five))


def detector_face(
    box: tuple[float, float, float, float],
    points: Sequence[tuple[float, float]],
    score: float | None,
    width: int,
    height: int,
) -> Face:
    """A face of MediaPipe's detector: ``box`` in pixels; key points (two eyes, nose tip, middle of the mouth, ...) as
    shares of the picture. It has no mouth corners: they are laid beside the middle, along the eyes' line and 0.42 of
    their distance away, as in the proportions of a frontal face."""
    key = np.array(points, np.float64)[:4] * np.array([width, height])
    along = 0.42 * (key[1] - key[0])
    five = np.array([key[0], key[1], key[2], key[3] - along, key[3] + along])
    x, y, w, h = (float(value) for value in box)
    return Face((x, y, w, h), by_image_side(five), score)


def by_image_side(points: np.ndarray) -> np.ndarray:
    """(5, 2) float32 landmarks of which the eyes and the mouth corners are ordered from image left to right."""
    points = np.asarray(points, np.float32).copy()
    for first, second in ((0, 1), (3, 4)):
        if points[first, 0] > points[second, 0]:
            points[[first, second]] = points[[second, first]]
    return points


def _check_file(name: str, model: str | None, suffixes: tuple[str, ...], known: str) -> Path:
    if model is None:
        raise LocatorError(f"locator: {name} needs a model file; set locator_model to {known}")
    file = Path(model)
    if not file.is_file():
        raise LocatorError(f"locator_model: {file} is not a file; {name} needs {known}")
    if file.suffix not in suffixes:
        raise LocatorError(f"locator_model: {file} does not end in {' or '.join(suffixes)}; {name} needs {known}")
    return file


def _unusable(name: str, model: str | None, known: str, error: Exception) -> LocatorError:
    told = " ".join(str(error).split())[:200]
    return LocatorError(f"locator_model: {model} cannot be used by {name}, which needs {known} ({told})")
