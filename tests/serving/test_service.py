"""The service on Ray Serve: one start for all of it."""

import asyncio
import contextlib
import json
import os
import random
import shlex
import shutil
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import piexif
import psutil
import pytest
import ray
from PIL import Image

from blades_dist.client import Client, ServiceProblem
from blades_dist.config import ServeConfig
from blades_dist.detect.detector import load_detector, save_detector
from blades_dist.testing.fuzz_cases import Cases
from blades_dist.testing.fuzz_wire import over_wire
from blades_dist.testing.service import encoded
from blades_dist.testing.toy_detector import toy_detector, write_bundle

pytestmark = pytest.mark.ray
PLACE = b"where-the-picture-was-taken"
PREDICT = Path(__file__).parents[2] / "jobs" / "predict.py"
LIMITS = {"max_bytes": 300_000, "max_batch_bytes": 600_000, "max_pixels": 500_000, "max_requests": 16}
LIMITS |= {"receive_seconds": 5.0}


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@pytest.fixture(scope="module")
def bundles(tmp_path_factory):
    """The default, which tests replace, another kind, and a shadow."""
    folder = tmp_path_factory.mktemp("bundles")
    write_bundle(folder / "default")
    write_bundle(folder / "other", "knn")
    write_bundle(folder / "shadow", "mahalanobis")
    return folder


@pytest.fixture(scope="module")
def config(bundles):
    return ServeConfig(
        detector=bundles / "default",
        others={"other": bundles / "other"},
        shadow={"other": bundles / "shadow"},
        port=free_port(),
        model_cpus=0.5,
        **LIMITS,
    )


@pytest.fixture(scope="module")
def service(ray_cluster, config, photos):
    from blades_dist.serving.app import running

    with running(config) as url:
        yield url
        data, pool = photos[2].read_bytes(), ThreadPoolExecutor(6)
        last = [pool.submit(httpx.post, f"{url}/v1/detect", content=data, timeout=60) for _ in range(6)]
        time.sleep(0.5)
    statuses = [future.result().status_code for future in last]
    assert 200 in statuses and set(statuses) <= {200, 503}, f"a service that stops answers what it has: {statuses}"
    pool.shutdown()
    with socket.socket() as probe:
        assert probe.connect_ex(("127.0.0.1", config.port)) != 0, "the port is still open"


@pytest.fixture(scope="module")
def files(photos, tmp_path_factory):
    """Photographs, one that is turned and carries EXIF, and one of two faces."""
    folder = tmp_path_factory.mktemp("files")
    for photo in photos:
        shutil.copy(photo, folder)
    with Image.open(photos[2]) as picture:
        pixels = picture.convert("RGB")
    tags = {"0th": {piexif.ImageIFD.Make: b"Canon", piexif.ImageIFD.Orientation: 6}, "Exif": {}}
    tags["Exif"] = {piexif.ExifIFD.ISOSpeedRatings: 200, piexif.ExifIFD.Flash: 0}
    tags["GPS"] = {piexif.GPSIFD.GPSLatitude: [(48, 1), (51, 1), (295713, 10000)], piexif.GPSIFD.GPSMapDatum: PLACE}
    pixels.rotate(90, expand=True).save(folder / "turned.jpg", exif=piexif.dump(tags), quality=95)
    pair = Image.new("RGB", (2 * pixels.width, pixels.height))
    pair.paste(pixels, (0, 0))
    pair.paste(pixels.transpose(Image.Transpose.FLIP_LEFT_RIGHT), (pixels.width, 0))
    pair.save(folder / "pair.png")
    return sorted(folder.iterdir())


def ask(service, photo, query=""):
    return httpx.post(f"{service}/v1/detect{query}", files={"file": (photo.name, photo.read_bytes())}, timeout=60)


def test_answers_equal_the_predict_job(service, files, config):
    command = [sys.executable, str(PREDICT), str(config.detector), str(files[0].parent), "--json"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=100)
    expected = {Path(item.pop("path")).name: item for item in json.loads(done.stdout)["images"]}
    assert len(expected["pair.png"]["faces"]) == 2 and expected["turned.jpg"]["faces"][0]["exif_consistency"]

    # Many at once, so that batches form; the answers are those of one file at a time, bit for bit.
    with ThreadPoolExecutor(12) as pool:
        answers = list(pool.map(lambda photo: ask(service, photo), files * 4))
    for photo, answer in zip(files * 4, answers, strict=True):
        if photo.name not in expected:
            assert answer.status_code == 422, answer.text
            continue
        body = answer.json()
        body.pop("timings"), body.pop("request_id")
        assert body == expected[photo.name]


def test_bad_input_is_a_problem_document(service, photo):
    data = photo.read_bytes()
    large = encoded((900, 900))
    for content, status, reason in (
        (data[: len(data) // 2], 400, "truncated"),
        (b"no picture", 400, "unreadable"),
        (large, 413, "too_large"),
        (b"x" * 5_000_000, 413, "too_large"),
        ((b"x" * 50_000 for _ in range(100)), 413, "too_large"),
        (b"GIF89a" + bytes(50), 415, "unsupported"),
        (encoded((200, 200)), 422, "no_face"),
    ):
        answer = httpx.post(f"{service}/v1/detect", content=content, timeout=60)
        assert (answer.status_code, answer.json()["reason"]) == (status, reason), answer.text
        assert answer.headers["content-type"] == "application/problem+json"
    assert httpx.post(f"{service}/v1/detect?fpr=0.0001", content=data, timeout=60).status_code == 400


def test_headers_and_request_ids(service):
    answer = httpx.get(f"{service}/healthz", headers={"x-request-id": "my-id"})
    assert answer.json() == {"status": "ok"}
    assert answer.headers.get_list("x-request-id") == ["my-id"] and answer.headers["cache-control"] == "no-store"
    answer = httpx.post(f"{service}/v1/detect", content=b"x")
    assert answer.headers.get_list("x-request-id") == [answer.json()["request_id"]]
    assert httpx.get(f"{service}/healthz", headers={"host": "evil.example"}).json()["reason"] == "host"
    assert httpx.get(f"{service}/healthz", headers={"x-y": "z" * 20_000}).status_code == 431


def test_several_bundles_by_name(service, config, photo):
    models = {item["name"]: item for item in httpx.get(f"{service}/v1/models").json()["models"]}
    assert set(models) == {"default", "other"} and models["default"]["default"]
    for name, folder in config.bundles.items():
        own = load_detector(folder).id
        assert models[name]["detector"]["id"] == own
        assert ask(service, photo, f"?model={name}").json()["detector"]["id"] == own
    assert ask(service, photo, "?model=none").json()["reason"] == "no_model"
    assert httpx.get(f"{service}/v2/health/ready").json() == {"ready": True}


def test_the_shadow_is_counted_and_changes_nothing(service, photos, bundles):
    own = load_detector(bundles / "other").id
    for photo in photos:
        answer = ask(service, photo, "?model=other")
        if answer.status_code == 200:
            assert answer.json()["detector"]["id"] == own
    wanted = [f'blades_shadow_faces_total{{outcome="{outcome}"' for outcome in ("agreed", "disagreed")]
    wait_for(lambda: any(line.startswith("ray_blades_shadow") for line in metrics() if "greed" in line), wanted)


def test_metrics_are_there_for_prometheus(service, photo):
    assert ask(service, photo).status_code == 200
    names = ("requests", "request_seconds", "decode_seconds", "batch_faces", "p_value")
    wait_for(lambda: all(any(f"ray_blades_{name}" in line for line in metrics()) for name in names), metrics)


def test_the_logs_have_requests_and_nothing_of_a_picture(service, files):
    (turned,) = [file for file in files if file.name == "turned.jpg"]
    number = ask(service, turned).json()["request_id"]
    folder = Path(ray._private.worker._global_node.get_logs_dir_path())

    def told():
        return b"".join(file.read_bytes() for file in folder.rglob("*") if file.is_file())

    wait_for(lambda: number.encode() in told(), number)
    ask(service, turned, "?faces=crop"), httpx.post(f"{service}/v1/detect", content=turned.read_bytes()[:3000])
    logs = told()
    assert b'"event": "request"' in logs
    assert not [word for word in (PLACE, b"turned.jpg", b"295713", b"29.5713") if word in logs]


def test_jobs(service, files):
    uploads = [("file", (file.name, file.read_bytes())) for file in files[:4]]
    accepted = httpx.post(f"{service}/v1/jobs", files=uploads, timeout=60)
    assert accepted.status_code == 202, accepted.text
    url = service + accepted.json()["status_url"]
    wait_for(lambda: httpx.get(url).json()["status"] == "done", lambda: httpx.get(url).json())
    results = httpx.get(url).json()["results"]
    assert [item["filename"] for item in results] == [file.name for file in files[:4]]
    assert all((item["image"] is None) != (item["problem"] is None) for item in results)
    assert httpx.delete(url).status_code == 204
    assert httpx.get(url).json()["reason"] == httpx.delete(url).json()["reason"] == "no_job"
    refused = httpx.post(f"{service}/v1/jobs?webhook=https://evil.example/", files=uploads)
    assert (refused.status_code, refused.json()["reason"]) == (403, "webhook")


def test_killed_replicas_cost_no_answer(service, photo):
    with load_on(service, photo) as statuses:
        for part in (":front", ":decode", ":model-default", "serving.decoding_child"):
            before = len(statuses)
            processes(part)[0].kill()
            wait_for(lambda count=before: len(statuses) >= count + 6, lambda: statuses, 120)
    assert set(statuses) == {200}, statuses


def test_a_new_bundle_comes_without_a_failed_request(service, config, photo):
    from blades_dist.serving.app import update

    before = load_detector(config.detector).id
    with load_on(service, photo) as statuses:
        time.sleep(0.5)
        # Other preprocessing too, so that crops of the old bundle do not fit the new one.
        save_detector(config.detector, toy_detector("knn", ("jpeg75", "jpeg50")))
        after = load_detector(config.detector).id
        pids = {process.pid for process in processes(":model-default")}
        update(config)
        time.sleep(1)
    assert set(statuses) == {200} and len(statuses) > 3, statuses
    body = ask(service, photo).json()
    assert body["detector"]["id"] == after != before and set(body["faces"][0]["re_encoded"]) == {"jpeg75", "jpeg50"}
    assert {process.pid for process in processes(":model-default")} == pids, "replicas were restarted"


def test_a_damaged_bundle_is_not_taken_up(service, config, photo):
    from blades_dist.serving.app import update

    (config.detector / "head.safetensors").write_bytes(b"damaged")
    with pytest.raises(ValueError, match="damaged"):
        update(config)
    assert ask(service, photo).status_code == 200


def test_a_replica_that_cannot_load_its_bundle_fails_with_the_reason(service, tmp_path):
    """Where the one who starts it cannot see the bundle, the replica says it."""
    from blades_dist.serving import app

    (tmp_path / "x").write_text("no bundle")
    begin = time.monotonic()
    with pytest.raises(ValueError, match=r"the service did not start: .*is no detector folder"):
        app._run(ServeConfig(detector=tmp_path, model_cpus=0.5), "broken", "/broken")
    assert time.monotonic() - begin < 60
    app.serve.delete("broken")


def test_the_client(service, files, photo):
    client = Client(service)
    assert [model["name"] for model in client.models()] == ["default", "other"]
    assert client.detect(photo, faces="crop", model="other")["faces_from"] == "whole image"
    many = client.detect_many([photo, b"x"], fpr=0.2)
    assert many[0]["image"]["faces"][0]["fpr"] == 0.2 and many[1]["problem"]["reason"] == "unreadable"
    name = client.submit([photo, b"x"])
    assert client.wait(name, 60)[0]["image"]["sha256"] == many[0]["image"]["sha256"]
    client.delete(name)
    with pytest.raises(ServiceProblem, match="404 no_job") as problem:
        client.job(name)
    assert problem.value.request_id
    with ThreadPoolExecutor(40) as pool:  # more than is worked on at once: the client comes again
        assert all(report["faces"] for report in pool.map(lambda _: client.detect(photo), range(40)))


@pytest.mark.skipif(shutil.which("curl") is None, reason="no curl here")
def test_the_documented_curl_lines_work(service, photo, tmp_path):
    text = (PREDICT.parents[1] / "docs" / "serving.md").read_text()
    lines = [line for line in text.splitlines() if line.startswith("curl ") and "http://127.0.0.1:8000" in line]
    for name in ("photo.jpg", "a.jpg", "b.jpg"):
        shutil.copy(photo, tmp_path / name)
    for line in lines:
        command = [*shlex.split(line.replace("http://127.0.0.1:8000", service)), "--silent", "--fail"]
        done = subprocess.run(command, capture_output=True, cwd=tmp_path, timeout=60)
        assert done.returncode == 0 and json.loads(done.stdout)["request_id"], (line, done)
    assert len(lines) == 3


def test_overload_is_refused_at_once(service, photo):
    with ThreadPoolExecutor(64) as pool:
        answers = list(pool.map(lambda _: ask(service, photo), range(128)))
    statuses = {answer.status_code for answer in answers}
    assert statuses == {200, 503}, statuses
    for answer in answers:
        if answer.status_code == 503:
            assert answer.json()["reason"] == "busy" and answer.headers["retry-after"] == "1"
    assert ask(service, photo).status_code == 200


def test_broken_framing_over_connections(service, config, photos):
    """``benchmarks/fuzz_service.py`` sends many more."""
    cases, statuses = Cases([photo.read_bytes() for photo in photos[:2]]), Counter()

    async def work():
        async def sender(seeds):
            for seed in seeds:
                statuses[await over_wire(config.port, cases.case(seed), random.Random(seed))] += 1

        await asyncio.gather(*(sender(range(first, 90, 6)) for first in range(6)))

    asyncio.run(work())
    assert {200, 400, 413, 415, 0} <= {status for _, status in statuses}, statuses
    assert httpx.get(f"{service}/healthz").status_code == 200


def test_listens_on_loopback_only(service):
    port = int(service.rpartition(":")[2])
    bound = {
        int(line.split()[1].partition(":")[0], 16)
        for line in Path("/proc/net/tcp").read_text().splitlines()[1:]
        if line.split()[3] == "0A" and int(line.split()[1].partition(":")[2], 16) == port
    }
    assert bound == {int.from_bytes(bytes([127, 0, 0, 1]), sys.byteorder)}


def test_says_what_keeps_it_from_starting(service, bundle, tmp_path, monkeypatch):
    from blades_dist.serving.app import running

    def start(**values):
        with running(ServeConfig(**{"detector": bundle, "port": free_port()} | values)):
            raise AssertionError("it started")

    with pytest.raises(FileNotFoundError, match="no detector folder"):
        start(detector=tmp_path)
    with pytest.raises(ValueError, match=r"needs \d+\.\d of Ray's logical CPUs"):
        start(model_cpus=100)
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        with pytest.raises(OSError, match="choose another with port="):
            start(port=taken.getsockname()[1])
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    with pytest.raises(ValueError, match="RAY_AUTH_MODE"):
        start()


def processes(part):
    """Those of this test's cluster that have this in their command."""
    found = []
    for process in psutil.Process(os.getpid()).children(recursive=True):
        with contextlib.suppress(psutil.NoSuchProcess):
            if part in " ".join(process.cmdline()):
                found.append(process)
    assert found, part
    return found


def metrics():
    """What Prometheus would read."""
    from blades_dist.serving.app import metrics_url

    url = metrics_url()
    assert url.startswith("http://127.0.0.1:")
    return [line for line in httpx.get(url, timeout=10).text.splitlines() if not line.startswith("#")]


def wait_for(condition, told, seconds=30):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, told() if callable(told) else told
        time.sleep(0.2)


@contextlib.contextmanager
def load_on(service, photo, clients=3):
    """Requests one after another from several clients for as long as the block runs; yields their statuses."""
    statuses, stop, data = [], threading.Event(), photo.read_bytes()

    def client():
        with httpx.Client(timeout=60) as own:
            while not stop.is_set():
                try:
                    statuses.append(own.post(f"{service}/v1/detect", content=data).status_code)
                except httpx.HTTPError as error:
                    statuses.append(type(error).__name__)

    threads = [threading.Thread(target=client) for _ in range(clients)]
    for thread in threads:
        thread.start()
    try:
        yield statuses
    finally:
        stop.set()
        for thread in threads:
            thread.join()
