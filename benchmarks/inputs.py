"""What the benchmarks of the data plane share: simulated photographs and shards, made once, and the table's header."""

import os
import platform
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path

import cv2
import numpy as np
import pyarrow as pa
from device import cpu_name

from blades_dist.config import IngestConfig, RayConfig
from blades_dist.data.ingest import ingest
from blades_dist.raylocal import cluster
from blades_dist.simulate.dataset import write_photographs


def photographs(count: int, size: int) -> Path:
    """A folder of simulated photographs of ``size`` pixels a side, with sidecars."""
    folder = _cache() / f"photographs-{size}-{count}"
    write_photographs(folder, count, seed=11, size=size, processes=os.cpu_count() or 1)
    return folder


def shards(count: int, size: int) -> Path:
    """Shards of such photographs: nine tenths in split train, the rest in val."""
    folder = _cache() / f"shards-{size}-{count}"
    splits = {"train": 0.9, "val": 0.1}
    config = IngestConfig(source=(str(photographs(count, size)),), output=folder, min_face_px=32, splits=splits)
    with cluster(RayConfig(num_cpus=os.cpu_count())):
        ingest(config)
    return folder


def quantiles(values: np.ndarray, form: str) -> str:
    """Median (20%, 80%)."""
    low, mid, high = (form.format(value) for value in np.quantile(values, [0.2, 0.5, 0.8]))
    return f"{mid} ({low}, {high})"


def in_turn(jobs: Mapping[str, Callable[[], object]], rounds: int, clock: Callable[[], float]) -> dict[str, np.ndarray]:
    """Seconds of every job in each of ``rounds``, by ``clock``, after one that warms up. One runs after the other, so
    that a machine that slows down slows all of them."""
    found: dict[str, list[float]] = {name: [] for name in jobs}
    for number in range(rounds + 1):
        for name, job in jobs.items():
            begin = clock()
            job()
            if number:
                found[name].append(clock() - begin)
    return {name: np.array(seconds) for name, seconds in found.items()}


def header() -> list[str]:
    """Device, load and versions."""
    return [
        f"- device: {cpu_name()}, {os.cpu_count()} cores, "
        f"load {os.getloadavg()[0]:.1f} when measured (others may have been at work)",
        f"- Python {platform.python_version()}, NumPy {np.__version__}, OpenCV {cv2.__version__}, "
        f"PyArrow {pa.__version__}",
    ]


def publish(text: str, name: str, write: bool) -> None:
    """Prints a table, and writes it to benchmarks/results if asked to."""
    print(text)
    if write:
        target = Path(__file__).parent / "results" / f"{name}.md"
        target.parent.mkdir(exist_ok=True)
        target.write_text(text)


def _cache() -> Path:
    return Path(tempfile.gettempdir()) / "blades-benchmarks"
