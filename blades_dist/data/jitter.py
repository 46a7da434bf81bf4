"""Where a face is cut out of its stored crop while training: another place and scale each epoch. No Ray here."""

import hashlib
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Window:
    """``width`` x ``height`` pixels of a picture from pixel (x, y) on."""

    x: int
    y: int
    width: int
    height: int

    @property
    def rows(self) -> slice:
        return slice(self.y, self.y + self.height)

    @property
    def columns(self) -> slice:
        return slice(self.x, self.x + self.width)

    @property
    def corner(self) -> np.ndarray:
        """(x, y) float32, in pixels."""
        return np.array([self.x, self.y], np.float32)


@dataclass(frozen=True)
class Jitter:
    """A window's sides are drawn between (1 - strength) and 1 of the crop's, and so is its place inside; whole pixels,
    so that nothing is resampled twice. All is a function of (seed, epoch, row id) alone: neither the number of workers
    nor resuming changes it. Landmarks that lie inside the crop lie inside the window. Strength 0: the whole crop.
    """

    strength: float = 0.0
    seed: int = 0

    def window(self, row: str, epoch: int, shape: tuple[int, int], landmarks: np.ndarray) -> Window:
        """The window of a row in an epoch; ``shape`` (height, width) of its crop, ``landmarks`` (5, 2), pixels."""
        height, width = shape
        if not self.strength:
            return Window(0, 0, width, height)
        scale, across, down = self._draw(row, epoch)
        kept = 1 - self.strength * scale
        x, w = _span(width, kept, across, landmarks[:, 0])
        y, h = _span(height, kept, down, landmarks[:, 1])
        return Window(x, y, w, h)

    def _draw(self, row: str, epoch: int) -> tuple[float, float, float]:
        """Three numbers in [0, 1)."""
        key = hashlib.blake2b(f"{self.seed}/{epoch}/{row}".encode(), digest_size=24).digest()
        first, second, third = ((int.from_bytes(key[i : i + 8], "little") >> 11) / 2**53 for i in (0, 8, 16))
        return first, second, third


STILL = Jitter()


def _span(side: int, kept: float, place: float, marks: np.ndarray) -> tuple[int, int]:
    """Start and length, in pixels, along one axis of ``side`` pixels."""
    inside = marks[(marks >= 0) & (marks <= side - 1)]
    low, high = (int(np.floor(inside.min())), int(np.ceil(inside.max()))) if len(inside) else (side, -1)
    length = min(side, max(1, round(side * kept), high + 1 - low))
    first, last = max(0, high + 1 - length), min(side - length, low)
    return first + int(place * (last - first + 1)), length
