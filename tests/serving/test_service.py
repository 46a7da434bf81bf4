"""The service on Ray Serve: one start for all of it."""

import contextlib
import io
import json
import socket
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest
from PIL import Image
from toy_detector import write_bundle, write_photographs

from blades_dist.config import RayConfig, ServeConfig
from blades_dist.raylocal import cluster

pytestmark = pytest.mark.ray
PREDICT = Path(__file__).parents[2] / "jobs" / "predict.py"


def _free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    folder = tmp_path_factory.mktemp("photos")
    write_photographs(folder, range(300, 306), sidecars=False)
    return sorted(folder.glob("*.jpg"))


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    folder = tmp_path_factory.mktemp("bundle") / "oc"
    write_bundle(folder)
    return folder


@pytest.fixture(scope="module")
def service(request, bundle):
    from blades_dist.serving.app import running

    with contextlib.suppress(pytest.FixtureLookupError):  # the session's cluster, where there is one
        request.getfixturevalue("ray_cluster")
    config = ServeConfig(detector=bundle, port=_free_port(), max_bytes=300_000, max_pixels=500_000)
    with cluster(RayConfig(num_cpus=2)), running(config) as url:
        yield url
    with socket.socket() as probe:
        assert probe.connect_ex(("127.0.0.1", config.port)) != 0, "the port is still open"


def test_answers_equal_the_predict_job(service, photos, bundle):
    command = [sys.executable, str(PREDICT), str(bundle), str(photos[0].parent), "--json"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=100)
    expected = {Path(item.pop("path")).name: item for item in json.loads(done.stdout)["images"]}
    assert expected

    def ask(photo):
        answer = httpx.post(f"{service}/v1/detect", files={"file": photo.read_bytes()}, timeout=60)
        if photo.name not in expected:
            assert answer.status_code == 422
            return None
        body = answer.json()
        body.pop("timings")
        return body

    # Many at once, so that batches form; the answers are those of one file at a time, bit for bit.
    with ThreadPoolExecutor(12) as pool:
        answers = list(pool.map(ask, photos * 4))
    for photo, answer in zip(photos * 4, answers, strict=True):
        assert answer == expected.get(photo.name)


def test_bad_input_is_a_problem_document(service, photos):
    gray = io.BytesIO()
    Image.new("RGB", (200, 200), "gray").save(gray, "PNG")
    large = io.BytesIO()
    Image.new("RGB", (900, 900), "gray").save(large, "PNG")
    data = photos[0].read_bytes()
    for content, status, reason in (
        (data[: len(data) // 2], 400, "truncated"),
        (b"no picture", 400, "unreadable"),
        (large.getvalue(), 413, "too_large"),
        (b"x" * 5_000_000, 413, "too_large"),
        ((b"x" * 50_000 for _ in range(100)), 413, "too_large"),
        (b"GIF89a" + bytes(50), 415, "unsupported"),
        (gray.getvalue(), 422, "no_face"),
    ):
        answer = httpx.post(f"{service}/v1/detect", content=content, timeout=60)
        assert (answer.status_code, answer.json()["reason"]) == (status, reason), answer.text
        assert answer.headers["content-type"] == "application/problem+json"
    assert httpx.get(f"{service}/healthz").json() == {"status": "ok"}
    assert len(httpx.get(f"{service}/v1/models").json()["models"]) == 1


def test_listens_on_loopback_only(service):
    port = int(service.rpartition(":")[2])
    bound = {
        int(line.split()[1].partition(":")[0], 16)
        for line in Path("/proc/net/tcp").read_text().splitlines()[1:]
        if line.split()[3] == "0A" and int(line.split()[1].partition(":")[2], 16) == port
    }
    assert bound == {int.from_bytes(bytes([127, 0, 0, 1]), sys.byteorder)}


def test_says_what_keeps_it_from_starting(bundle, tmp_path, monkeypatch):
    from blades_dist.serving.app import running

    with (
        pytest.raises(FileNotFoundError, match="no detector folder"),
        running(ServeConfig(detector=tmp_path, port=_free_port())),
    ):
        pass
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        config = ServeConfig(detector=bundle, port=taken.getsockname()[1])
        with pytest.raises(OSError, match="choose another with port="), running(config):
            pass
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    with pytest.raises(ValueError, match="RAY_AUTH_MODE"), running(ServeConfig(detector=bundle, port=_free_port())):
        pass
