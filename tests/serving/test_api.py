"""The HTTP interface without Ray: routes, limits and problems."""

import asyncio
import io

import numpy as np
import pytest
from fastapi.testclient import TestClient
from PIL import Image
from toy_detector import write_bundle, write_photographs

from blades_dist.data.records import REASONS
from blades_dist.detect.bundle import load_detector
from blades_dist.detect.inspect import inspect_files
from blades_dist.serving.api import make_api
from blades_dist.serving.body_limit import BodyLimit
from blades_dist.serving.schema import PROBLEM_TYPE, STATUS_OF_REASON

MAX_BYTES, MAX_PIXELS = 300_000, 500_000


class Direct:
    """A scorer without batching."""

    def __init__(self, detector):
        self.detector = detector

    async def score(self, crops, fpr):
        return self.detector.detect(crops, fpr)


@pytest.fixture(scope="module")
def detector(tmp_path_factory):
    folder = tmp_path_factory.mktemp("bundle") / "oc"
    write_bundle(folder)
    return load_detector(folder)


@pytest.fixture(scope="module")
def client(detector):
    return TestClient(make_api(Direct(detector), MAX_BYTES, MAX_PIXELS), raise_server_exceptions=False)


@pytest.fixture(scope="module")
def photo(tmp_path_factory):
    folder = tmp_path_factory.mktemp("photo")
    write_photographs(folder, range(302, 303), sidecars=False)
    return folder / "0302.jpg"


def _encoded(size, kind="PNG"):
    stream = io.BytesIO()
    Image.new("RGB", size, "gray").save(stream, kind)
    return stream.getvalue()


def _problem(answer, status, reason):
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"] == PROBLEM_TYPE
    body = answer.json()
    assert body["status"] == status and body["reason"] == reason and body["detail"] and body["title"]
    assert "Traceback" not in answer.text
    return body


def test_form_and_raw_body_answer_like_predict(client, detector, photo):
    ((_, expected),) = inspect_files(detector, [photo], MAX_PIXELS, MAX_BYTES)
    data = photo.read_bytes()
    for answer in (
        client.post("/v1/detect", files={"file": ("x.jpg", data, "image/jpeg")}),
        client.post("/v1/detect", content=data, headers={"content-type": "image/jpeg"}),
        client.post("/v1/detect", content=data),
    ):
        assert answer.status_code == 200, answer.text
        body = answer.json()
        timings = body.pop("timings")
        assert body == expected.model_dump(mode="json")
        assert 0 < timings["score"] <= timings["total"]


def test_parameters(client, photo):
    data = photo.read_bytes()
    body = client.post("/v1/detect?fpr=0.2&faces=crop", content=data).json()
    assert body["faces"][0]["fpr"] == 0.2 and body["faces_from"] == "whole image"
    for query in ("fpr=0", "fpr=1", "fpr=x", "faces=none", "fpr=nan", "fpr=0.0001"):
        _problem(client.post(f"/v1/detect?{query}", content=data), 400, "bad_parameter")


def test_images_that_cannot_be_judged(client, photo):
    data = photo.read_bytes()
    for content, status, reason in (
        (b"", 400, "empty"),
        (b"no picture", 400, "unreadable"),
        (data[: len(data) // 2], 400, "truncated"),
        (_encoded((900, 900)), 413, "too_large"),
        (_encoded((200, 200), "GIF"), 415, "unsupported"),
        (_encoded((200, 200)), 422, "no_face"),
    ):
        _problem(client.post("/v1/detect", content=content), status, reason)
        if content:
            _problem(client.post("/v1/detect", files={"file": ("x", content)}), status, reason)


def test_bodies_that_cannot_be_read(client, photo):
    _problem(client.post("/v1/detect", files={"other": ("x", b"y")}), 400, "no_file")
    _problem(client.post("/v1/detect", data={"file": "text"}, files={"other": b"y"}), 400, "no_file")
    for kind in ("multipart/form-data", "multipart/form-data; boundary=x"):
        answer = client.post("/v1/detect", content=b"--y garbage", headers={"content-type": kind})
        assert answer.status_code == 400 and answer.headers["content-type"] == PROBLEM_TYPE, answer.text
    _problem(client.get("/v1/detect"), 405, "http")
    _problem(client.get("/nothing"), 404, "http")


def test_body_limit(client):
    _problem(client.post("/v1/detect", content=b"x" * (MAX_BYTES + 1)), 413, "too_large")
    chunks = (b"x" * 50_000 for _ in range(10))
    _problem(client.post("/v1/detect", content=chunks), 413, "too_large")


def test_body_limit_stops_reading():
    """A body without an announced length is given up at the limit, not read to its end."""
    asked, sent = 0, []

    async def app(scope, receive, send):
        while (await receive())["more_body"]:
            pass

    async def receive():
        nonlocal asked
        asked += 1
        return {"type": "http.request", "body": b"x" * 100, "more_body": True}

    async def send(message):
        sent.append(message)

    from starlette.responses import Response

    limited = BodyLimit(app, 1000, lambda: Response(status_code=413))
    asyncio.run(limited({"type": "http", "headers": []}, receive, send))
    assert asked == 11 and sent[0]["status"] == 413


def test_models_and_health(client, detector):
    (model,) = client.get("/v1/models").json()["models"]
    assert model["detector"]["id"] == detector.id and model["calibration_faces"] == 119
    assert client.get("/healthz").json() == {"status": "ok"}
    document = client.get("/openapi.json").json()
    assert "/v1/detect" in document["paths"]


def test_a_fault_of_ours_is_no_trace(detector, photo):
    class Broken(Direct):
        async def score(self, crops, fpr):
            raise RuntimeError("secret " + str(np.__file__))

    client = TestClient(make_api(Broken(detector), MAX_BYTES, MAX_PIXELS), raise_server_exceptions=False)
    answer = client.post("/v1/detect", content=photo.read_bytes())
    _problem(answer, 500, "internal")
    assert "secret" not in answer.text


def test_every_reason_of_one_image_has_a_status():
    assert set(REASONS) - set(STATUS_OF_REASON) == {"no_usable_tag", "duplicate", "near_duplicate"}  # of ingest
