"""The training stream: decoding against bare OpenCV, the trainer's wait for data, and the object store it needs.

python benchmarks/stream.py                       prints the tables
python benchmarks/stream.py --write               also writes benchmarks/results/stream.md
python benchmarks/stream.py --quick               small: does it work
python benchmarks/stream.py --only decode         of: decode, wait, store

Inputs are simulated once and kept below the temporary folder. PYTHONPATH=. where the package is not installed.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import cv2
import inputs
import numpy as np
import pyarrow.parquet as pq

from blades_dist.config import RayConfig, StreamConfig
from blades_dist.data.jitter import Jitter
from blades_dist.data.order import Chunk, Position, chunks
from blades_dist.data.records import read_manifest
from blades_dist.data.stream import Load, batches_per_task, load_chunk, stream
from blades_dist.ray_private import object_store
from blades_dist.raylocal import cluster

ROOT = Path(__file__).parents[1]
SIZE, BATCH = 224, 64
MEBIBYTE = 2**20


def decoding(folder: Path, stored: int, rounds: int) -> list[str]:
    """Images a second of one core: the function that runs in the stream's tasks, and OpenCV on the same bytes."""
    shards = read_manifest(folder).split("train")
    files = [(folder / shard.name, group) for shard in shards for group in range(len(shard.row_groups))]
    sizes = [rows for shard in shards for rows in shard.row_groups]
    config = StreamConfig(shards=folder, image_size=SIZE)
    each = batches_per_task(config, BATCH)
    plan = chunks(
        sizes, config.window_groups, 0, Position(), batch_size=BATCH, rank=0, world_size=1, batches_per_chunk=each
    )
    epoch = list(islice(plan, max(1, sum(sizes) // (each * BATCH))))
    images = [item for chunk in epoch for item in _stored(files, chunk)]

    def bare() -> None:
        for item in images:
            pixels = np.asarray(cv2.imdecode(item, cv2.IMREAD_COLOR))
            if pixels.shape[:2] != (SIZE, SIZE):
                cv2.resize(pixels, (SIZE, SIZE), interpolation=cv2.INTER_AREA)

    def loaded(jitter: Jitter) -> Callable[[], object]:
        load = Load(files, SIZE, jitter)
        return lambda: [load_chunk(chunk, load).num_rows for chunk in epoch]  # no result is kept

    jobs: dict[str, Callable[[], object]] = {
        "OpenCV: imdecode, resize": bare,
        "the stream's task": loaded(Jitter()),
        "the stream's task, jitter 0.1": loaded(Jitter(0.1)),
    }
    times = inputs.in_turn(jobs, rounds, time.process_time)
    base = times["OpenCV: imdecode, resize"]
    lines = [
        f"## Decode, crop, resize: faces stored at {stored} x {stored} pixels to {SIZE} x {SIZE}, one core",
        "",
        f"{rounds} rounds of {len(images)} faces in {len(epoch)} tasks, CPU time; median (20%, 80%). The "
        "stream's task also reads Parquet (row groups that tasks share are read by each), turns BGR pixels into RGB "
        "planes, scales landmarks, gathers labels and packs batches; OpenCV has its bytes in memory. Wanted: at least "
        "0.75 of OpenCV's rate.",
        "",
        "| what | images/s | rate over OpenCV's |",
        "|---|---|---|",
    ]
    for name, seconds in times.items():
        rate = inputs.quantiles(len(images) / seconds, "{:.0f}")
        lines.append(f"| {name} | {rate} | {inputs.quantiles(base / seconds, '{:.2f}')} |")
    return lines


def _stored(files: list[tuple[Path, int]], chunk: Chunk) -> Iterator[np.ndarray]:
    """Encoded images of a chunk's rows."""
    tables = {
        g: pq.ParquetFile(files[g][0]).read_row_group(files[g][1], columns=["image"]) for g in set(chunk.group.tolist())
    }
    for group, row in zip(chunk.group.tolist(), chunk.row.tolist(), strict=True):
        yield np.frombuffer(tables[group]["image"][row].as_py(), np.uint8)


def waiting(folder: Path, steps: int) -> list[str]:
    """The share of time that a run of the demo's configuration waits for data."""
    with tempfile.TemporaryDirectory() as name:
        settings = {"data.shards": folder, "storage": name, "train.max_steps": steps, "name": "waiting"}
        command = [sys.executable, "jobs/pretrain.py", "--config", "jobs/configs/demo.yaml"]
        command += [f"{key}={value}" for key, value in settings.items()]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
        if done.returncode:
            raise RuntimeError(f"the run failed:\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}")
        speed = json.loads((Path(name) / "waiting" / "speed.json").read_text())
    return [
        "## The trainer's wait for data, demo configuration",
        "",
        "One worker, model and batch of jobs/configs/demo.yaml; time blocked on the next batch (training and "
        "validation) over wall time, checkpoints included, without each stream's first batch. Wanted: at most 5%.",
        "",
        "| steps | seconds | images/s | waited, s | share of time | first batches, s |",
        "|---|---|---|---|---|---|",
        f"| {speed['steps']} | {speed['seconds']:.1f} | {speed['images_per_second']:.0f} | "
        f"{speed['data_wait_seconds']:.2f} | {speed['data_wait_share']:.2%} | {speed['first_batch_seconds']:.1f} |",
    ]


@dataclass
class Use:
    """Of the object store, in bytes; sampled, but for what was spilled."""

    peak: int = 0
    spilled: int = 0
    fallback: int = 0


def storing(folder: Path, store: int, buffer: int, times: float) -> list[str]:
    """Peak use of a small object store by a stream of ``times`` as many bytes; ``store`` and ``buffer`` in MiB."""
    config = StreamConfig(shards=folder, image_size=SIZE, buffer_mebibytes=buffer)
    wanted = int(times * store * MEBIBYTE / (BATCH * 3 * SIZE**2))
    with cluster(RayConfig(num_cpus=2), object_store_bytes=store * MEBIBYTE):
        batches = stream(folder, "train", config, batch_size=BATCH, rank=0, world_size=1, seed=0, start=Position())
        with _sampled() as use:
            seen = sum(batch["images"].nbytes for batch, _ in islice(batches, wanted))
        batches.close()  # type: ignore[attr-defined]
    return [
        "## Object store of a stream larger than it",
        "",
        f"One worker, `buffer_mebibytes` {buffer}: at most two spans of decoded faces are in the store. Sampled every "
        "20 ms. Wanted: nothing spilled, nothing beyond the store.",
        "",
        "| store, MiB | streamed, MiB | peak use, MiB | peak over store | spilled, MiB | outside the store, MiB |",
        "|---|---|---|---|---|---|",
        f"| {store} | {seen / MEBIBYTE:.0f} | {use.peak / MEBIBYTE:.0f} | {use.peak / (store * MEBIBYTE):.2f} | "
        f"{use.spilled / MEBIBYTE:.0f} | {use.fallback / MEBIBYTE:.0f} |",
    ]


@contextmanager
def _sampled() -> Iterator[Use]:
    use, done = Use(), threading.Event()
    read = object_store()

    def sample() -> None:
        while not done.wait(0.02):
            used, fallback, use.spilled = read()
            use.peak, use.fallback = max(use.peak, used), max(use.fallback, fallback)

    thread = threading.Thread(target=sample)
    thread.start()
    try:
        yield use
    finally:
        done.set()
        thread.join()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="*", choices=["decode", "wait", "store"], default=["decode", "wait", "store"])
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--write", action="store_true", help="also write benchmarks/results/stream.md")
    options = parser.parse_args()
    stored, count, steps, rounds = (256, 650, 8, 2) if options.quick else (320, 1300, 200, options.rounds)
    cv2.setNumThreads(1)
    parts = []
    if "decode" in options.only:
        parts.append(decoding(inputs.shards(count, stored), stored, rounds))
    if "wait" in options.only:
        parts.append(waiting(inputs.shards(650 if options.quick else 3000, 128), steps))
    if "store" in options.only:
        # Ray's smallest store is 75 MiB.
        parts.append(storing(inputs.shards(count, stored), store=100, buffer=24, times=1.5 if options.quick else 10))
    lines = ["# The training stream", "", *inputs.header()]
    for part in parts:
        lines += ["", *part]
    inputs.publish("\n".join(lines) + "\n", "stream", options.write)


if __name__ == "__main__":
    main()
