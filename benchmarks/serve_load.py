"""The service under load on this machine, against the bare pipeline (decode, locate, crop, judge) on the same cores.

python benchmarks/serve_load.py            prints the table
python benchmarks/serve_load.py --write    also writes benchmarks/results/serve_load.md
python benchmarks/serve_load.py --quick    a few seconds a phase: does it work

Bare: one decoding process ahead of one ``Detector.detect`` with as many threads as the replica has. The senders run on
the same cores as the service. Rounds of both take turns.
"""

import argparse
import asyncio
import os
import time
from collections import Counter, deque
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import inputs
import numpy as np
import torch
from service_inputs import Sent, closed_loop, files, free_port, mebibytes, open_loop, sampled, temporary, write_detector

from blades_dist.config import RayConfig, ServeConfig
from blades_dist.detect.bundle import load_detector
from blades_dist.detect.detector import Detector
from blades_dist.detect.inspect import report
from blades_dist.detect.prepare import Prepared, Unusable
from blades_dist.raylocal import cluster
from blades_dist.serving.app import running
from blades_dist.serving.decoding import DecodeProcess

CORES = os.cpu_count() or 1
PIXELS = 320  # so that the encoder dominates: the Haar locator takes 0.2 s of a core at 640


def bare(detector: Detector, process: DecodeProcess, data: list[bytes], batch: int, seconds: float) -> float:
    """Images a second."""
    how, done, number, begin = detector.info.preprocessing, 0, 0, time.perf_counter()
    ahead: deque[Future[Prepared | Unusable]] = deque()
    with ThreadPoolExecutor(1) as pool:
        while time.perf_counter() - begin < seconds:
            while len(ahead) < 2 * batch:
                ahead.append(pool.submit(process.prepare, data[number % len(data)], how, False))
                number += 1
            taken = [ahead.popleft().result()]
            while ahead and ahead[0].done() and len(taken) < batch:
                taken.append(ahead.popleft().result())
            ready = [item for item in taken if isinstance(item, Prepared)]
            results = iter(detector.detect(np.concatenate([item.crops for item in ready])))
            for item in ready:
                report(detector, item, [next(results) for _ in item.faces]).model_dump_json()
            done += len(ready)
        spent = time.perf_counter() - begin
        for waiting in ahead:
            waiting.cancel()
    return done / spent


async def measure(url: str, detector: Detector, data: list[bytes], config: ServeConfig, unit: float) -> str:
    """The table; ``unit`` seconds a round."""
    bare_rates, rates, clients = [], [], 2 * config.max_batch_size
    bounds = config.max_pixels, config.max_bytes, config.decode_seconds, config.decode_mebibytes
    with DecodeProcess(*bounds) as process:
        bare(detector, process, data, config.max_batch_size, unit / 4)
        await closed_loop(url, data, clients, unit / 4)
        for _ in range(3):
            bare_rates.append(bare(detector, process, data, config.max_batch_size, unit))
            sent = await closed_loop(url, data, clients, unit)
            assert {one.outcome for one in sent} == {"200"}, Counter(one.outcome for one in sent)
            rates.append(len(sent) / max(one.over for one in sent))
    capacity = float(np.median(rates))
    before = mebibytes()
    lone = await closed_loop(url, data, 1, unit / 2)
    half = await open_loop(url, data, 0.5 * capacity, 2 * unit, 1)
    most = await open_loop(url, data, 0.9 * capacity, 2 * unit, 2)
    over, peak = await sampled(mebibytes, asyncio.create_task(open_loop(url, data, 3 * capacity, 2 * unit, 3)))
    after = await open_loop(url, data, 0.5 * capacity, 2 * unit, 4)
    await asyncio.sleep(2)
    ratio = np.array(rates) / np.array(bare_rates)
    near = 1.5 * float(np.quantile([one.latency for one in half], 0.99))
    seconds = range(int(2 * unit))
    late = [
        s
        for s in seconds
        if any(s <= one.due < s + 1 and (one.latency > near or one.outcome != "200") for one in after)
    ]
    first = next((s for s in seconds if s not in late), None)
    lines = [
        "# The service under load, on loopback",
        "",
        *inputs.header(),
        f"- PyTorch {torch.__version__}; ResNet-50 at 224 x 224 pixels with random weights, a mixture of 8 on 64 "
        f"dimensions, one re-encoding; {len(data)} JPEG photographs of {PIXELS} x {PIXELS} pixels, one face each",
        f"- one front, one decoder, one model replica of {CORES} threads, `max_batch_size` {config.max_batch_size}, "
        f"`max_requests` {config.max_requests}; senders on the same cores",
        "",
        f"Images/s of 3 rounds of {unit:g} s each, in turn; median (20%, 80%). Service: {clients} closed-loop clients.",
        "",
        "| | images/s |",
        "|---|---|",
        f"| bare pipeline | {inputs.quantiles(np.array(bare_rates), '{:.1f}')} |",
        f"| service | {inputs.quantiles(np.array(rates), '{:.1f}')} |",
        f"| service over bare (wanted: 0.85) | {inputs.quantiles(ratio, '{:.2f}')} |",
        "",
        "Random arrivals (Poisson); latency from when a request was due.",
        "",
        "| | requests | 200 | 503 | other | p50 of 200, ms | p99 of 200, ms |",
        "|---|---|---|---|---|---|---|",
        _row("one client after another", lone),
        _row(f"50% of capacity ({0.5 * capacity:.1f}/s)", half),
        _row(f"90% of capacity ({0.9 * capacity:.1f}/s)", most),
        _row(f"300% of capacity ({3 * capacity:.1f}/s)", over),
        _row("50% again, at once", after),
        "",
        f"Memory of all processes of the service (shared pages counted for each): {before:.0f} MiB before, {peak:.0f} "
        f"MiB at most during overload, {mebibytes():.0f} MiB after.",
        "",
        f"Recovery: requests due from second {first} after the overload have all a 200 within {1e3 * near:.0f} ms "
        f"(1.5 times the p99 at 50%); {len(late)} of the {len(seconds)} seconds had a request beyond it.",
    ]
    return "\n".join(lines) + "\n"


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
        data = [item for item, made in found if isinstance(made, Prepared) and len(made.faces) == 1]
        assert len(data) > 5, "the locator finds no face"
        with cluster(RayConfig(num_cpus=CORES + 2)), running(config) as url:
            table = asyncio.run(measure(url, detector, data, config, 3 if options.quick else 10))
    inputs.publish(table, "serve_load", options.write)


if __name__ == "__main__":
    main()
