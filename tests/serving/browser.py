"""What the browser tests stand on: a detector of simulated photographs, the page behind HTTP, and watched tabs."""

import contextlib
import io
import json
import os
import shutil
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np
import torch
import uvicorn
from fastapi import FastAPI
from PIL import Image

from blades_dist.config import FitConfig, MixtureConfig
from blades_dist.detect.consistency import claimed_labels
from blades_dist.detect.detector import Detector, save_detector
from blades_dist.detect.features import FeatureSet
from blades_dist.detect.fit import CALIBRATE, FIT, MEASURE, RealFaces, assemble
from blades_dist.detect.heads.base import Fitted
from blades_dist.detect.inspect import report
from blades_dist.detect.preprocess import PreprocessedImage, preprocess
from blades_dist.detect.schema import ImageReport
from blades_dist.serving.api import make_api
from blades_dist.serving.middleware import read_tokens
from blades_dist.simulate.dataset import generated, photograph
from blades_dist.simulate.generators import FAMILIES
from blades_dist.tasks import TAGS
from blades_dist.testing.service import Local, small_config
from blades_dist.testing.toy_detector import fitted, tiny_encoder, toy_detector, toy_manifest

MAX_BYTES, MAX_PIXELS = 2_000_000, 1_000_000
VIEWS = ("jpeg75",)


def chromium() -> str | None:
    """A browser of this machine; ``BLADES_CHROMIUM`` names one that is elsewhere."""
    names = ("chromium", "chromium-browser", "google-chrome", "chrome")
    return os.environ.get("BLADES_CHROMIUM") or next(filter(None, map(shutil.which, names)), None)


def write_detector(folder: Path) -> None:
    """A bundle with the tiny untrained encoder, fitted, calibrated and measured on simulated photographs."""
    encoder, how = tiny_encoder(), toy_detector(re_encodings=VIEWS).info.preprocessing
    splits, views, start = {}, {}, 0
    for split, count in ((FIT, 30), (CALIBRATE, 59), (MEASURE, 10)):
        found = [photograph(index, seed=5, size=64) for index in range(start, start + count)]
        start += count
        ready = [
            preprocess(one.jpeg, how.model_copy(update={"min_face_px": 16}), MAX_PIXELS, MAX_BYTES, _sidecar(one))
            for one in found
        ]
        features = encoder.features(torch.from_numpy(np.concatenate([one.crops for one in ready])).flatten(0, 1))
        features = features.unflatten(0, (count, 1 + len(VIEWS))).numpy()
        labels = np.array([[claimed_labels(one.exif, how.ordinal_edges).get(tag, -1) for tag in TAGS] for one in ready])
        ids = [f"{index:08x}" for index in range(count)]
        splits[split] = FeatureSet(features[:, 0], ids, ["simulated"] * count, ids, labels)
        views[split] = {name: FeatureSet(features[:, i], ids, ids, ids, labels) for i, name in enumerate(VIEWS, 1)}
    real = RealFaces(Path("simulated"), toy_manifest(), splits, {name: views[name] for name in (CALIBRATE, MEASURE)})
    config = FitConfig(
        encoder="toy",
        shards=Path("simulated"),
        output=folder,
        fpr=0.1,
        unsure_fpr=0.2,
        re_encodings=VIEWS,
        oc=MixtureConfig(n_components=1, n_pca_components=4),
    )
    mixture = fitted(config.section("oc"), splits[FIT].features)
    save_detector(folder, assemble(config, encoder, real, Fitted(mixture)))


def expected(detector: Detector, data: bytes, fpr: float | None = None, whole: bool = False) -> ImageReport:
    """What the page has to show: the answer for a file's bytes without any service.

    Raises:
        Rejected: as ``preprocess``.
    """
    prepared: PreprocessedImage = preprocess(data, detector.info.preprocessing, MAX_PIXELS, MAX_BYTES, whole=whole)
    return report(detector, prepared, detector.detect(prepared.crops, fpr))


@dataclass(frozen=True)
class Pictures:
    """Files by verdict of the detector, and one with two faces that is stored lying on its side (EXIF orientation)."""

    photographic: bytes
    ai_generated: bytes
    unsure: bytes
    pair: bytes


def find_pictures(detector: Detector) -> Pictures:
    """The first simulated photographs, and generated faces, of each verdict among those in which a face is found."""
    shots = (photograph(index, seed=5, size=160).jpeg for index in range(1000, 1060))
    found = _first_of(detector, shots, ("photographic", "unsure"))
    made = (generated(name, index, seed=5, size=160).jpeg for index in range(40) for name in FAMILIES)
    found |= _first_of(detector, made, ("ai_generated",))
    halves = [np.asarray(Image.open(io.BytesIO(found[name]))) for name in ("photographic", "ai_generated")]
    stream, exif = io.BytesIO(), Image.Exif()
    exif[0x0112] = 6  # to be turned right by a quarter
    Image.fromarray(np.rot90(np.hstack(halves)).copy()).save(stream, "JPEG", quality=95, exif=exif)
    return Pictures(**found, pair=stream.getvalue())


@contextlib.contextmanager
def service(folder: Path, detector: Detector) -> Iterator[str]:
    """A service with the bundle ``folder`` for the enclosed block; yields its URL. Here: the API without Ray."""
    server = uvicorn.Server(uvicorn.Config(_app(detector), port=0, log_level="warning"))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    while not server.started and thread.is_alive():
        time.sleep(0.02)
    try:
        yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join(10)


@dataclass
class Watch:
    """What must not happen in a tab: errors, breaches of the content security policy, requests to elsewhere."""

    base: str
    errors: list[str] = field(default_factory=list)
    strangers: list[str] = field(default_factory=list)
    posts: list[str] = field(default_factory=list)
    refusals_expected: bool = False

    def console(self, message: Any) -> None:
        refused = message.text.startswith("Failed to load resource")
        if message.type in ("error", "warning") and not (refused and self.refusals_expected):
            self.errors.append(message.text)

    def request(self, request: Any) -> None:
        if not request.url.startswith((self.base + "/", "blob:" + self.base, "data:")):
            self.strangers.append(request.url)
        if request.method == "POST":
            self.posts.append(urlsplit(request.url).query)


def _app(detector: Detector) -> FastAPI:
    config = small_config(name="toy", max_bytes=MAX_BYTES, max_pixels=MAX_PIXELS)
    return make_api(Local(detector, config), config, read_tokens(config))


def _first_of(detector: Detector, pictures: Iterator[bytes], verdicts: tuple[str, ...]) -> dict[str, bytes]:
    found: dict[str, bytes] = {}
    for data in pictures:
        with contextlib.suppress(ValueError):  # Rejected: no face was found in it
            faces = expected(detector, data).faces
            if len(faces) == 1 and faces[0].verdict in verdicts:
                found.setdefault(faces[0].verdict, data)
        if len(found) == len(verdicts):
            return found
    raise AssertionError(f"none of the simulated pictures is {set(verdicts) - set(found)}")


def _sidecar(image: Any) -> bytes:
    return json.dumps(image.sidecar).encode()
