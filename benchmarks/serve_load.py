"""The service under load on this machine, against the bare detector on the same cores.

python benchmarks/serve_load.py            prints the table
python benchmarks/serve_load.py --write    also writes benchmarks/results/serve_load.md
python benchmarks/serve_load.py --quick    a few seconds a phase: does it work

Bare model: ``Detector.detect`` on full batches of crops that lie ready. Bare pipeline: the same behind one decoding
process that is a batch ahead. Both have as many threads as the replica. The senders run on the same cores as the
service. All take turns, three times.
"""

import argparse
import asyncio
import os
import time
from collections import Counter, deque
from collections.abc import Awaitable, Callable
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import cycle, islice
from pathlib import Path
from typing import Any

import inputs
import numpy as np
import torch
from service_inputs import (
    Sent,
    closed_loop,
    cpu_seconds,
    files,
    free_port,
    mebibytes,
    open_loop,
    sampled,
    temporary,
    write_detector,
)

from blades_dist.config import RayConfig, ServeConfig
from blades_dist.detect.detector import Detector, load_detector
from blades_dist.detect.inspect import report
from blades_dist.detect.preprocess import PreprocessedImage, Unusable
from blades_dist.raylocal import cluster
from blades_dist.serving.app import running
from blades_dist.serving.decoding import DecodeProcess
from blades_dist.serving.environment import ENVIRONMENT

CORES = os.cpu_count() or 1
PIXELS = 320  # the Haar locator takes 0.2 s of a core at 640
ROUNDS = 3
CALM = 3  # seconds in a row without a late answer, after which the service has recovered


def bare_model(detector: Detector, crops: np.ndarray, batch: int, seconds: float) -> tuple[float, int]:
    """Images a second, and their number, of crops (n, 1 + V, 3, S, S) taken round and round in full batches."""
    order, done, begin = cycle(range(len(crops))), 0, time.perf_counter()
    while time.perf_counter() - begin < seconds:
        done += len(detector.detect(crops[list(islice(order, batch))]))
    return done / (time.perf_counter() - begin), done


def bare(
    detector: Detector, process: DecodeProcess, data: list[bytes], batch: int, seconds: float, whole: bool
) -> tuple[float, int]:
    """Images a second from files to answers, in full batches, while the process decodes the next one: between the first
    batch, during which nothing can be done side by side, and the last. And the number of images in all."""
    how, numbers, ends = detector.info.preprocessing, iter(cycle(range(len(data)))), list[float]()
    ahead: deque[Future[PreprocessedImage | Unusable]] = deque()
    begin, batches = time.perf_counter(), 0
    with ThreadPoolExecutor(1) as pool:
        while ahead or not batches:
            if batches < 2 or time.perf_counter() - begin < seconds:
                more = 2 * batch - len(ahead)
                ahead.extend(pool.submit(process.prepare, data[number], how, whole) for number in islice(numbers, more))
            ready = [
                item for item in (ahead.popleft().result() for _ in range(batch)) if isinstance(item, PreprocessedImage)
            ]
            results = iter(detector.detect(np.concatenate([item.crops for item in ready])))
            for item in ready:
                report(detector, item, [next(results) for _ in item.faces]).model_dump_json()
            batches += 1
            if len(ahead) == batch:  # the last one has nothing beside it either
                ends.append(time.perf_counter())
    return batch * (len(ends) - 1) / (ends[-1] - ends[0]), batch * batches


Rounds = dict[str, list[tuple[float, float]]]
Turn = Callable[[], Awaitable[tuple[float, float]]]


async def rates(url: str, detector: Detector, data: list[bytes], config: ServeConfig, unit: float) -> Rounds:
    """Images a second, and milliseconds of CPU an image, by what is measured; a pair a round of ``unit`` seconds."""
    batch, how = config.max_batch_size, detector.info.preprocessing
    bounds = config.max_pixels, config.max_bytes, config.decode_seconds, config.decode_mebibytes
    found: Rounds = {}
    with DecodeProcess(*bounds) as process:
        ready = [process.prepare(item, how, True) for item in data]
        crops = np.concatenate([item.crops for item in ready if isinstance(item, PreprocessedImage)])

        async def service(query: str) -> tuple[float, float]:
            before = cpu_seconds()
            sent = await closed_loop(url, data, batch, unit, query)
            assert {one.outcome for one in sent} == {"200"}, Counter(one.outcome for one in sent)
            cost = 1e3 * (cpu_seconds() - before) / len(sent)
            return len(sent) / max(one.over for one in sent), cost

        def local(work: Callable[..., tuple[float, int]], *arguments: Any) -> Turn:
            async def timed() -> tuple[float, float]:
                before = cpu_seconds(process.pid)
                rate, images = await asyncio.to_thread(work, *arguments)
                return rate, 1e3 * (cpu_seconds(process.pid) - before) / images

            return timed

        turns: dict[str, Turn] = {
            "bare model": local(bare_model, detector, crops, batch, unit),
            "bare crop": local(bare, detector, process, data, batch, unit, True),
            "service crop": lambda: service("?faces=crop"),
            "bare locate": local(bare, detector, process, data, batch, unit, False),
            "service locate": lambda: service(""),
        }
        await closed_loop(url, data, batch, unit / 2)
        for _ in range(ROUNDS):
            for name, turn in turns.items():
                found.setdefault(name, []).append(await turn())
                print(f"{name}: {found[name][-1][0]:.2f} images/s, {found[name][-1][1]:.0f} ms of CPU", flush=True)
    return found


async def measure(url: str, detector: Detector, data: list[bytes], config: ServeConfig, unit: float) -> str:
    """The table; ``unit`` seconds a round."""
    rounds = await rates(url, detector, data, config, unit)
    found, cost = ({name: np.array(pairs)[:, i] for name, pairs in rounds.items()} for i in (0, 1))
    capacity = float(np.median(found["service locate"]))
    before = mebibytes()
    lone = await closed_loop(url, data, 1, unit / 2)
    half = await open_loop(url, data, 0.5 * capacity, 2 * unit, 1)
    most = await open_loop(url, data, 0.9 * capacity, 2 * unit, 2)
    over, peak = await sampled(mebibytes, asyncio.create_task(open_loop(url, data, 3 * capacity, 2 * unit, 3)))
    after = await open_loop(url, data, 0.5 * capacity, 2 * unit, 4)
    await asyncio.sleep(2)
    near = 1.5 * float(np.quantile([one.latency for one in half], 0.99))
    refused = [1e3 * one.latency for one in over if one.outcome == "503"]
    rows = [
        ("bare model, crops ready", "bare model", None),
        ("bare pipeline, `faces=crop`", "bare crop", None),
        ("service, `faces=crop`", "service crop", "bare model"),
        ("bare pipeline, faces located", "bare locate", None),
        ("service, faces located", "service locate", "bare locate"),
    ]
    lines = [
        "# The service under load, on loopback",
        "",
        *inputs.header(),
        f"- PyTorch {torch.__version__}; ResNet-50 at 224 x 224 pixels with random weights, a mixture of 8 on 64 "
        f"dimensions, one re-encoding; {len(data)} JPEG photographs of {PIXELS} x {PIXELS} pixels, one face each",
        f"- one front, one decoder, one model replica of {CORES} threads, `max_batch_size` {config.max_batch_size}, "
        f"`max_requests` {config.max_requests}; senders on the same cores",
        "",
        f"Images/s of {ROUNDS} rounds of {unit:g} s each, in turn; median (20%, 80%). Service: {config.max_batch_size} "
        "closed-loop clients. Ratios (wanted: 0.85) of each round: where the whole file is the crop, to the model "
        "alone, which decodes nothing; where faces are located, which takes as long as judging them, to the pipeline.",
        "",
        "CPU: user and system time of all processes that take part, an image (for the service those of Ray and the "
        "senders, too); other work on the machine leaves it much as it is.",
        "",
        "| | images/s | ratio | CPU ms an image | ratio |",
        "|---|---|---|---|---|",
    ]
    for name, own, to in rows:
        speed = "" if to is None else inputs.quantiles(found[own] / found[to], "{:.2f}")
        work = "" if to is None else inputs.quantiles(cost[to] / cost[own], "{:.2f}")
        told = f"{inputs.quantiles(found[own], '{:.1f}')} | {speed} | {inputs.quantiles(cost[own], '{:.0f}')} | {work}"
        lines.append(f"| {name} | {told} |")
    lines += [
        "",
        "Faces located; random arrivals (Poisson); latency from when a request was due.",
        "",
        "| | requests | 200 | 503 | other | p50 of 200, ms | p99 of 200, ms |",
        "|---|---|---|---|---|---|---|",
        _row("one client after another", lone),
        _row(f"50% of capacity ({0.5 * capacity:.1f}/s)", half),
        _row(f"90% of capacity ({0.9 * capacity:.1f}/s)", most),
        _row(f"300% of capacity ({3 * capacity:.1f}/s)", over),
        _row("50% again, at once", after),
        "",
        f"A 503 came within {np.median(refused):.0f} ms (median), {np.quantile(refused, 0.99):.0f} ms (99%)."
        if refused
        else "No 503 came.",
        "",
        f"Memory of all processes of the service (shared pages counted for each): {before:.0f} MiB before, {peak:.0f} "
        f"MiB at most during overload, {mebibytes():.0f} MiB after.",
        "",
        f"Recovery: {_recovery(after, near, int(2 * unit))} a 200 within {1e3 * near:.0f} ms (1.5 times the p99 at "
        "50%).",
    ]
    return "\n".join(lines) + "\n"


def _recovery(after: list[Sent], near: float, seconds: int) -> str:
    late = {int(one.due) for one in after if one.latency > near or one.outcome != "200"}
    for second in range(seconds - CALM + 1):
        if not late & set(range(second, second + CALM)):
            return f"from {second} s after the overload, for {CALM} s on end, every request had"
    return f"in {seconds} s after the overload there were not {CALM} s on end in which every request had"


def _row(name: str, sent: list[Sent]) -> str:
    counts = Counter(one.outcome for one in sent)
    other = len(sent) - counts["200"] - counts["503"]
    good = 1e3 * np.array([one.latency for one in sent if one.outcome == "200"])
    p50, p99 = np.quantile(good, [0.5, 0.99])
    return f"| {name} | {len(sent)} | {counts['200']} | {counts['503']} | {other} | {p50:.0f} | {p99:.0f} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--write", action="store_true", help="also write benchmarks/results/serve_load.md")
    options = parser.parse_args()
    with temporary() as folder:
        bundle = Path(folder) / "oc"
        write_detector(bundle)
        detector = load_detector(bundle)
        config = ServeConfig(detector=bundle, port=free_port(), model_cpus=CORES)
        with DecodeProcess(config.max_pixels, config.max_bytes, 20, 1024) as process:
            found = [(item, process.prepare(item, detector.info.preprocessing, False)) for item in files(32, PIXELS)]
        data = [item for item, made in found if isinstance(made, PreprocessedImage) and len(made.faces) == 1]
        assert len(data) > 5, "the locator finds no face"
        os.environ.update(ENVIRONMENT)
        with cluster(RayConfig(num_cpus=CORES + 2)), running(config) as url:
            table = asyncio.run(measure(url, detector, data, config, 3 if options.quick else 6))
    inputs.publish(table, "serve_load", options.write)


if __name__ == "__main__":
    main()
