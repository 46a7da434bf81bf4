"""What the benchmarks of the service share: a detector of a real size, files, senders, and the service's processes."""

import asyncio
import contextlib
import os
import socket
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import httpx
import inputs
import numpy as np
import psutil

from blades_dist.config import FitConfig, ImageTowerConfig, MixtureConfig, ModelConfig, TextTowerConfig
from blades_dist.detect.detector import save_detector
from blades_dist.detect.features import FeatureSet, encode
from blades_dist.detect.fit import CALIBRATE, FIT, MEASURE, RealFaces, assemble
from blades_dist.detect.heads.base import Fitted
from blades_dist.models.export import freeze
from blades_dist.models.joint import build_joint_model
from blades_dist.tasks import TAGS, task_set
from blades_dist.testing.toy_detector import fitted, toy_manifest

SIZE = 224
_PARTS = ("ray::ServeReplica", "ray::Proxy", "serving.decoding_child")


def write_detector(folder: Path) -> None:
    """ResNet-50 at 224 pixels with random weights, a mixture on its features, one re-encoding.

    The head is fitted on resampled features of a few random pictures: its time is what it would be.
    """
    config = ModelConfig(
        image=ImageTowerConfig(preset="resnet50"),
        text=TextTowerConfig(layers=1, width=16, heads=2),
        batchnorm="frozen",
    )
    encoder, random = (
        freeze(build_joint_model(config, task_set(), 0), task_set(), SIZE, {"note": "untrained"}),
        _random(),
    )
    few = encode(encoder, random.integers(0, 256, (24, SIZE, SIZE, 3), dtype=np.uint8), 8)

    def faces(n: int) -> FeatureSet:
        drawn = few[random.integers(0, len(few), n)] + random.normal(0, 0.01, (n, few.shape[1])).astype(np.float32)
        drawn /= np.linalg.norm(drawn, axis=1, keepdims=True)
        labels = random.integers(-1, 2, (n, len(TAGS)))
        return FeatureSet(drawn, [f"{i:08x}" for i in range(n)], ["random"] * n, [f"{i}.jpg" for i in range(n)], labels)

    splits = {FIT: faces(800), CALIBRATE: faces(240), MEASURE: faces(240)}
    real = RealFaces(
        Path("random"), toy_manifest(), splits, {name: {"jpeg75": splits[name]} for name in (CALIBRATE, MEASURE)}
    )
    mixture = MixtureConfig(n_components=8, n_pca_components=64)
    fit = FitConfig(
        encoder="random", shards=Path("random"), output=Path("random"), oc=mixture, re_encodings=("jpeg75",)
    )
    head = fitted(mixture, splits[FIT].features)
    save_detector(folder, assemble(fit, encoder, real, Fitted(head, {"bic": 0.0})))


def files(count: int, size: int) -> list[bytes]:
    """JPEG photographs of ``size`` pixels a side."""
    return [file.read_bytes() for file in sorted(inputs.photographs(count, size).glob("*.jpg"))]


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def processes(*parts: str) -> list[psutil.Process]:
    """Processes of the service that this process started, by parts of their command lines."""
    found = []
    for process in psutil.Process(os.getpid()).children(recursive=True):
        with contextlib.suppress(psutil.NoSuchProcess, psutil.AccessDenied):
            if any(part in " ".join(process.cmdline()) for part in parts or _PARTS):
                found.append(process)
    return found


def mebibytes() -> float:
    """Memory that the service's processes hold, what they share counted for each."""
    total = 0.0
    for process in processes():
        with contextlib.suppress(psutil.NoSuchProcess):
            total += process.memory_info().rss / 2**20
    return total


def cpu_seconds(*only: int | None) -> float:
    """User and system time so far of this process and of those it started, or of ``only`` some of the latter."""
    own, total = psutil.Process(os.getpid()), 0.0
    for process in [own, *own.children(recursive=True)]:
        with contextlib.suppress(psutil.NoSuchProcess):
            if process == own or not only or process.pid in only:
                times = process.cpu_times()
                total += times.user + times.system
    return total


@dataclass(frozen=True)
class Sent:
    """One request: seconds since the begin at which it was due and over, and its status or the error's name."""

    due: float
    over: float
    outcome: str

    @property
    def latency(self) -> float:
        return self.over - self.due


async def closed_loop(url: str, data: list[bytes], clients: int, seconds: float, query: str = "") -> list[Sent]:
    """Each client asks again as soon as it has its answer, after a failure a twentieth of a second later."""
    begin, sent = time.perf_counter(), list[Sent]()

    async def one(client: httpx.AsyncClient, number: int) -> None:
        while (due := time.perf_counter() - begin) < seconds:
            outcome = await _ask(client, url, data[number % len(data)], query)
            sent.append(Sent(due, time.perf_counter() - begin, outcome))
            number += clients
            if outcome != "200":
                await asyncio.sleep(0.05)

    async with _client() as client:
        await asyncio.gather(*(one(client, number) for number in range(clients)))
    return sent


async def open_loop(url: str, data: list[bytes], rate: float, seconds: float, seed: int = 0) -> list[Sent]:
    """Requests at random times (Poisson), ``rate`` a second, whatever becomes of those before."""
    begin, sent = time.perf_counter(), list[Sent]()
    times = np.cumsum(np.random.default_rng(seed).exponential(1 / rate, int(2 * rate * seconds) + 20))

    async def one(client: httpx.AsyncClient, number: int, due: float) -> None:
        outcome = await _ask(client, url, data[number % len(data)])
        sent.append(Sent(due, time.perf_counter() - begin, outcome))

    async with _client() as client, asyncio.TaskGroup() as group:
        for number, due in enumerate(times[times < seconds]):
            await asyncio.sleep(max(0.0, begin + due - time.perf_counter()))
            group.create_task(one(client, number, float(due)))
    return sent


async def sampled(read: Callable[[], float], work: asyncio.Task[list[Sent]]) -> tuple[list[Sent], float]:
    """What the work gives, and the largest of what is read meanwhile."""
    highest = 0.0
    while not work.done():
        highest = max(highest, await asyncio.to_thread(read))
        await asyncio.sleep(0.5)
    return await work, highest


def temporary() -> tempfile.TemporaryDirectory[str]:
    return tempfile.TemporaryDirectory(prefix="blades-service-")


async def _ask(client: httpx.AsyncClient, url: str, data: bytes, query: str = "") -> str:
    try:
        return str((await client.post(f"{url}/v1/detect{query}", content=data)).status_code)
    except httpx.HTTPError as error:
        return type(error).__name__


def _client() -> httpx.AsyncClient:
    return httpx.AsyncClient(timeout=60, limits=httpx.Limits(max_connections=None, max_keepalive_connections=64))


def _random() -> np.random.Generator:
    return np.random.default_rng(1)
