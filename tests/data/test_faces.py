"""Sidecars and the crop."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from blades_dist.data.decode import Rejected
from blades_dist.data.faces import Face, check_inside, crop, face_from_json, parse_sidecar, scaled, sidecar_of

POINTS = [[30.0, 30.0], [60.0, 30.0], [45.0, 45.0], [35.0, 60.0], [55.0, 60.0]]
PIXELS = np.arange(100 * 120 * 3, dtype=np.uint32).astype(np.uint8).reshape(100, 120, 3)


def face(x: float, y: float, w: float, h: float) -> Face:
    return Face((x, y, w, h), np.array(POINTS, np.float32))


def test_sidecar() -> None:
    content = {"faces": [{"box": [10, 20, 30, 40.5], "landmarks": POINTS}, {"box": [1, 2, 3, 4], "landmarks": POINTS}]}
    faces = parse_sidecar(json.dumps(content).encode())
    assert [f.box for f in faces] == [(10, 20, 30, 40.5), (1, 2, 3, 4)]
    assert (faces[0].landmarks == np.array(POINTS)).all()
    assert parse_sidecar(b'{"faces": []}') == []
    assert sidecar_of(Path("a/b.c.jpg")) == Path("a/b.c.faces.json")


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (b"{", "sidecar"),
        (b"\xff\xfe\x00", "sidecar"),
        (b"[" * 100_000, "sidecar"),
        (b"[]", 'no list "faces"'),
        ({"faces": [3]}, "faces[0] is not an object"),
        ({"faces": [{"box": [1, 2, 3], "landmarks": POINTS}]}, "faces[0].box"),
        ({"faces": [{"box": [1, 2, 3, "wide"], "landmarks": POINTS}]}, "faces[0].box"),
        ({"faces": [{"box": [1, 2, float("nan"), 4], "landmarks": POINTS}]}, "faces[0].box"),
        ({"faces": [{"box": [1, 2, 0, 4], "landmarks": POINTS}]}, "no area"),
        ({"faces": [{"box": [500, 2, 10, 10], "landmarks": POINTS}]}, "outside"),
        ({"faces": [{"box": [1, 2, 3, 4]}]}, "faces[0].landmarks"),
        ({"faces": [{"box": [1, 2, 3, 4], "landmarks": POINTS[:4]}]}, "faces[0].landmarks"),
        ({"faces": [{"box": [1, 2, 3, 4], "landmarks": POINTS}] * 257}, "257 faces"),
    ],
)
def test_malformed_sidecars_say_what_is_wrong(content: Any, told: str) -> None:
    data = content if isinstance(content, bytes) else json.dumps(content).encode()
    with pytest.raises(Rejected) as caught:
        check_inside(parse_sidecar(data), 120, 100)
    assert caught.value.reason == "bad_sidecar" and told in caught.value.detail


@pytest.mark.parametrize(
    ("box", "scale", "corner", "side"),
    [
        ((40, 40, 20, 20), 1.0, (40, 40), 20),
        ((40, 40, 20, 20), 1.5, (35, 35), 30),
        ((40, 40, 10, 20), 1.0, (35, 40), 20),
        ((0, 0, 20, 20), 2.0, (0, 0), 40),
        ((100, 80, 20, 20), 2.0, (80, 60), 40),
        ((30, 20, 60, 60), 3.0, (10, 0), 100),
    ],
)
def test_crop(box: tuple[float, float, float, float], scale: float, corner: tuple[int, int], side: int) -> None:
    pixels, points = crop(PIXELS, face(*box), scale)
    x, y = corner
    assert (pixels == PIXELS[y : y + side, x : x + side]).all() and pixels.shape == (side, side, 3)
    assert (points == np.array(POINTS) - corner).all() and points.dtype == np.float32


def test_faces_scale_and_travel() -> None:
    moved = scaled(face(10, 20, 30, 40), 2, 0.5)
    assert moved.box == (20, 10, 60, 20) and moved.landmarks.dtype == np.float32
    assert (moved.landmarks == np.array(POINTS) * [2, 0.5]).all()
    one = Face((0.1, 0.2, 1 / 3, 4.0), np.array(POINTS, np.float32) / 7, 0.9)
    back = face_from_json(json.loads(json.dumps(one.as_json())))
    assert (back.box, back.score) == (one.box, one.score) and (back.landmarks == one.landmarks).all()
    assert back.landmarks.dtype == np.float32
