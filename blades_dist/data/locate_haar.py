"""Frontal faces by the cascades that come with OpenCV 4: needs no model file, and misses profiles."""

from pathlib import Path
from typing import Any

import cv2
import numpy as np

from blades_dist.data.faces import PROPORTIONS, Face


class HaarLocator:
    """Landmarks follow the proportions of a frontal face, turned and scaled to the eyes when the eye cascade finds
    exactly one on each side. No scores."""

    def __init__(self) -> None:
        folder = Path(cv2.__file__).parent / "data"
        self._faces = cv2.CascadeClassifier(str(folder / "haarcascade_frontalface_alt2.xml"))
        self._eyes = cv2.CascadeClassifier(str(folder / "haarcascade_eye.xml"))

    def find(self, rgb: np.ndarray) -> list[Face]:
        gray = cv2.equalizeHist(cv2.cvtColor(rgb, cv2.COLOR_RGB2GRAY))
        boxes = self._faces.detectMultiScale(gray, 1.1, 5, minSize=(24, 24))
        found = []
        for x, y, w, h in np.asarray(boxes, int).reshape(-1, 4):
            points = self._landmarks(gray, float(x), float(y), float(w)).astype(np.float32)
            found.append(Face((float(x), float(y), float(w), float(h)), points))
        return found

    def _landmarks(self, gray: np.ndarray, x: float, y: float, side: float) -> np.ndarray:
        """(5, 2) pixels of ``gray``."""
        points = np.array([x, y]) + side * PROPORTIONS
        top, left, minimum = int(y + 0.15 * side), int(x), max(8, int(0.14 * side))
        upper = gray[top : int(y + 0.60 * side), left : int(x + side)]
        found: Any = ()
        if min(upper.shape) > minimum:
            found = self._eyes.detectMultiScale(upper, 1.1, 5, minSize=(minimum, minimum))
        centres = [(ex + ew / 2 + left, ey + eh / 2 + top) for ex, ey, ew, eh in found]
        at_left = [c for c in centres if c[0] < x + 0.47 * side]
        at_right = [c for c in centres if c[0] > x + 0.53 * side]
        if len(at_left) != 1 or len(at_right) != 1 or abs(at_right[0][1] - at_left[0][1]) > 0.25 * side:
            return points
        # The similarity that takes the proportions' eyes to the ones found, in complex numbers.
        z = points[:, 0] + 1j * points[:, 1]
        a, b = complex(*at_left[0]), complex(*at_right[0])
        moved = a + (z - z[0]) * (b - a) / (z[1] - z[0])
        return np.stack([moved.real, moved.imag], axis=1)
