"""Sidecars, the locator and the crop."""

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from blades_dist.data.decode import Rejected, decode_image
from blades_dist.data.faces import Face, crop, locate, read_sidecar, sidecar_of

POINTS = [[30.0, 30.0], [60.0, 30.0], [45.0, 45.0], [35.0, 60.0], [55.0, 60.0]]
PIXELS = np.arange(100 * 120 * 3, dtype=np.uint32).astype(np.uint8).reshape(100, 120, 3)


def face(x: float, y: float, w: float, h: float) -> Face:
    return Face((x, y, w, h), np.array(POINTS, np.float32))


def test_sidecar() -> None:
    content = {"faces": [{"box": [10, 20, 30, 40.5], "landmarks": POINTS}, {"box": [1, 2, 3, 4], "landmarks": POINTS}]}
    faces = read_sidecar(json.dumps(content).encode(), 120, 100)
    assert [f.box for f in faces] == [(10, 20, 30, 40.5), (1, 2, 3, 4)]
    assert (faces[0].landmarks == np.array(POINTS)).all()
    assert read_sidecar(b'{"faces": []}', 10, 10) == []
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
        read_sidecar(data, 120, 100)
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


def test_nothing_is_located_in_noise_and_tiny_photos() -> None:
    assert locate(np.full((300, 200, 3), 128, np.uint8)) == []
    assert locate(np.zeros((1, 1, 3), np.uint8)) == []
    assert locate(np.zeros((3000, 2, 3), np.uint8)) == []


def test_real_faces_are_located() -> None:
    folder = Path(os.environ.get("BLADES_REAL_FACES", "../shared/faces"))
    if not (folder / "index.jsonl").is_file():
        pytest.skip(f"no real photographs in {folder} (BLADES_REAL_FACES names another folder)")
    known = [json.loads(line) for line in (folder / "index.jsonl").read_text().splitlines()]
    known = [item for item in known if item["file"].startswith("photographs_with_exif/")]
    small = sorted(known, key=lambda item: (item["width"] * item["height"], item["file"]))[:25]
    found = boxes = 0
    for item in small:
        rgb = decode_image((folder / item["file"]).read_bytes(), 10**8, 10**8).rgb
        centres = [(f.landmarks.mean(axis=0), f) for f in locate(rgb)]
        for x, y, w, h in item["faces_xywh"]:
            boxes += 1
            found += any(x < c[0] < x + w and y < c[1] < y + h and 0.5 < f.box[2] / w < 2 for c, f in centres)
    assert found >= 0.75 * boxes
