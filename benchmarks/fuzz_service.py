"""Mutated pictures, bodies and headers against the service's HTTP interface: no 500, no hang, no growth of memory.

PYTHONPATH=. python benchmarks/fuzz_service.py --cases 24000 --wire 2000  prints the tables
PYTHONPATH=. python benchmarks/fuzz_service.py --write                    also writes benchmarks/results/fuzz_service.md

The application is called over ASGI in this process, with the tests' small detector and the service's own decoding
process; then other cases go over connections, their framing wrong in many ways, to the service on Ray. A case is given
by its seed. Ends with a trace at the first broken promise.
"""

import argparse
import asyncio
import faulthandler
import os
import random
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

import inputs
import psutil
from service_inputs import free_port, mebibytes

from blades_dist.config import RayConfig, ServeConfig
from blades_dist.detect.detector import load_detector
from blades_dist.raylocal import cluster
from blades_dist.serving.api import make_api
from blades_dist.serving.app import running
from blades_dist.serving.decoding import DecodeProcess
from blades_dist.serving.environment import ENVIRONMENT
from blades_dist.serving.middleware import Tokens
from blades_dist.testing import fuzz_wire
from blades_dist.testing.fuzz_cases import SECONDS_A_CASE, Bounded, Cases, exchange, fuzz_config
from blades_dist.testing.toy_detector import write_bundle, write_photographs

AT_ONCE = 4
WARM = 0.2  # share of the cases before memory counts
GROWTH_MEBIBYTES = 40
WIRE_GROWTH_MEBIBYTES = 150  # of eight processes, whose shared pages count in each


async def run(folder: Path, cases: Cases, wanted: int) -> str:
    """Sends the cases; the table."""
    config = fuzz_config()
    bounds = config.max_pixels, config.max_bytes, config.decode_seconds, config.decode_mebibytes
    statuses: Counter[tuple[str, int]] = Counter()
    reasons: Counter[str] = Counter()
    seconds: list[float] = []
    held: list[tuple[float, float]] = []
    with DecodeProcess(*bounds) as process:
        app = make_api(
            Bounded(load_detector(folder / "oc"), config, process),
            config,
            Tokens([]),
            lambda handled: reasons.update([handled.reason]),
        )
        seeds = iter(range(wanted))

        async def sender() -> None:
            for seed in seeds:
                # A loop that is stuck in a computation keeps no deadline: then this ends the run, with traces.
                faulthandler.dump_traceback_later(6 * SECONDS_A_CASE, exit=True)
                case, begin = cases.case(seed), time.perf_counter()
                status = await exchange(app, case, random.Random(seed))
                seconds.append(time.perf_counter() - begin)
                statuses[case.kind, status] += 1
                if len(seconds) % 100 == 0:
                    held.append((_mebibytes(None), _mebibytes(process.pid)))

        begin = time.perf_counter()
        async with asyncio.TaskGroup() as group:
            for _ in range(AT_ONCE):
                group.create_task(sender())
        faulthandler.cancel_dump_traceback_later()
        total, failures = time.perf_counter() - begin, process.failures
    return _table(statuses, reasons, sorted(seconds), held, total, failures)


async def over_wire(port: int, cases: Cases, first: int, wanted: int) -> str:
    """Sends cases to the running service; the table."""
    statuses: Counter[tuple[str, int]] = Counter()
    held: list[float] = []
    seeds, begin, longest = iter(range(first, first + wanted)), time.perf_counter(), 0.0

    async def sender() -> None:
        nonlocal longest
        for seed in seeds:
            start = time.perf_counter()
            statuses[await fuzz_wire.over_wire(port, cases.case(seed), random.Random(seed))] += 1
            longest = max(longest, time.perf_counter() - start)
            if sum(statuses.values()) % 100 == 0:
                held.append(await asyncio.to_thread(mebibytes))

    async with asyncio.TaskGroup() as group:
        for _ in range(AT_ONCE):
            group.create_task(sender())
    warm = held[int(WARM * len(held)) :]
    first_held, last_held = warm[0], warm[-1]
    assert last_held - first_held < WIRE_GROWTH_MEBIBYTES, f"the service grew from {first_held} to {last_held} MiB"
    lines = [
        "",
        f"Over connections, to the service on Ray: {wanted} further cases, {AT_ONCE} at once, "
        f"{time.perf_counter() - begin:.0f} s, the longest {longest:.1f} s. Memory of all its processes: "
        f"{first_held:.0f} MiB after 20% of the cases, {last_held:.0f} MiB in the end.",
        "",
        *_matrix("framing", statuses, {0: "closed"}),
    ]
    return "\n".join(lines) + "\n"


def _matrix(what: str, statuses: Counter[tuple[str, int]], names: dict[int, str]) -> list[str]:
    codes = sorted({status for _, status in statuses})
    lines = [
        f"| {what} | {' | '.join(names.get(code, str(code)) for code in codes)} |",
        "|---" * (len(codes) + 1) + "|",
    ]
    for kind in sorted({kind for kind, _ in statuses}):
        lines.append(f"| {kind} | {' | '.join(str(statuses[kind, code] or '') for code in codes)} |")
    return lines


def _table(
    statuses: Counter[tuple[str, int]],
    reasons: Counter[str],
    seconds: list[float],
    held: list[tuple[float, float]],
    total: float,
    failures: int,
) -> str:
    warm = held[int(WARM * len(held)) :]
    tenth = max(1, len(warm) // 10)
    lines = [
        "# Mutated requests to the service",
        "",
        f"{len(seconds)} cases, {AT_ONCE} at once, {total:.0f} s. Every case had a documented "
        f"status (never 500), errors as problem documents, within {SECONDS_A_CASE:g} s. "
        "A stalled sender is told 408 after 0.5 s.",
        "",
        *inputs.header(),
        "",
        f"A case: median {1e3 * seconds[len(seconds) // 2]:.1f} ms, 99% {1e3 * seconds[int(0.99 * len(seconds))]:.0f} "
        f"ms, longest {seconds[-1]:.2f} s. The decoding process was lost, and replaced, {failures} times.",
        "",
        "| memory held, MiB | after 20% of the cases | last tenth | highest |",
        "|---|---|---|---|",
    ]
    for which, name in enumerate(("HTTP process (with the detector)", "decoding process")):
        own = [pair[which] for pair in warm]
        first, last = max(own[:tenth]), max(own[-tenth:])
        lines.append(f"| {name} | {first:.0f} | {last:.0f} | {max(own):.0f} |")
        if last - first > GROWTH_MEBIBYTES:
            print("\n".join(lines))
            raise AssertionError(f"{name} grew from {first:.0f} to {last:.0f} MiB")
    lines += ["", *_matrix("cases", statuses, {0: "sender left"})]
    lines += ["", "Reasons: " + ", ".join(f"`{name}` {count}" for name, count in reasons.most_common() if name) + "."]
    return "\n".join(lines) + "\n"


def _mebibytes(pid: int | None) -> float:
    try:
        return float(psutil.Process(pid).memory_info().rss) / 2**20
    except psutil.NoSuchProcess:  # it is being replaced
        return 0.0


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--cases", type=int, default=24_000)
    parser.add_argument("--wire", type=int, default=2000, help="further cases over connections to the service on Ray")
    parser.add_argument("--write", action="store_true", help="also write benchmarks/results/fuzz_service.md")
    options = parser.parse_args()
    os.environ.update(ENVIRONMENT)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_bundle(folder / "oc")
        write_photographs(folder / "photos", range(300, 306), sidecars=False)
        cases = Cases([file.read_bytes() for file in sorted((folder / "photos").glob("*.jpg"))])
        table = asyncio.run(run(folder, cases, options.cases))
        if options.wire:
            small = fuzz_config(receive_seconds=2.0).model_dump()
            config = ServeConfig(**small | {"detector": folder / "oc", "port": free_port()})
            with cluster(RayConfig(num_cpus=4)), running(config):
                table += asyncio.run(over_wire(config.port, cases, options.cases, options.wire))
    inputs.publish(table, "fuzz_service", options.write)
    return 0


if __name__ == "__main__":
    sys.exit(main())
