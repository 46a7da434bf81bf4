"""Small pictures for people to look at; nothing is measured on them."""

import cv2
import numpy as np


def thumbnail(stored: bytes, side: int) -> bytes:
    """A stored image as a JPEG of at most ``side`` pixels a side.

    Raises:
        ValueError: the bytes are no image: the shard is damaged.
    """
    pixels = cv2.imdecode(np.frombuffer(stored, np.uint8), cv2.IMREAD_COLOR)
    if pixels is None:
        raise ValueError("a stored image cannot be decoded, the shard is damaged; run ingest again")
    scale = min(1.0, side / max(pixels.shape[:2]))
    if scale < 1:
        pixels = cv2.resize(pixels, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)
    return cv2.imencode(".jpg", pixels, [cv2.IMWRITE_JPEG_QUALITY, 92])[1].tobytes()
