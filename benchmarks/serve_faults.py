"""What requests see when parts of the service are killed (SIGKILL) under load, and during a rolling update.

python benchmarks/serve_faults.py            prints the table
python benchmarks/serve_faults.py --write    also writes benchmarks/results/serve_faults.md

Clients ask in a closed loop on connections they keep, and never repeat a request, but for the rows of ``client.py``,
which does. The detector is the tests' small one.
"""

import argparse
import asyncio
import os
import shutil
import threading
import time
from collections import Counter
from collections.abc import Callable, Coroutine
from functools import partial
from pathlib import Path
from typing import Any

import inputs
import numpy as np
from service_inputs import Sent, closed_loop, free_port, processes, temporary

from blades_dist.client import Client, ServiceProblem
from blades_dist.config import RayConfig, ServeConfig
from blades_dist.raylocal import cluster
from blades_dist.serving.app import running, update
from blades_dist.serving.environment import ENVIRONMENT
from blades_dist.testing.toy_detector import write_bundle, write_photographs

CLIENTS = 6
SECONDS, AT = 30.0, 6.0  # of a run, and when it happens
WINDOW, BACK = 2.0, 0.8  # it is back when for so many seconds it answers this share of what it did before
MODEL, DECODE, FRONT = (f"ServeReplica:blades:{name}" for name in ("model-default", "decode", "front"))
CHILD, PROXY = "serving.decoding_child", "ray::ProxyActor"
Load = Callable[[str, list[bytes]], Coroutine[Any, Any, list[Sent]]]
Acts = dict[str, tuple[Load, Callable[[], object]]]


async def plain(url: str, data: list[bytes]) -> list[Sent]:
    """Clients that repeat nothing."""
    return await closed_loop(url, data, CLIENTS, SECONDS)


async def with_client(url: str, data: list[bytes]) -> list[Sent]:
    """Clients of ``client.py``, which ask again where that is safe."""
    begin, sent = time.perf_counter(), list[Sent]()

    def one() -> None:
        client = Client(url)
        while (due := time.perf_counter() - begin) < SECONDS:
            try:
                client.detect(data[0])
                outcome = "200"
            except (ServiceProblem, OSError) as error:
                outcome = str(getattr(error, "status", type(error).__name__))
            sent.append(Sent(due, time.perf_counter() - begin, outcome))

    threads = [threading.Thread(target=one) for _ in range(CLIENTS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        await asyncio.to_thread(thread.join)
    return sent


async def fault(load: Load, url: str, data: list[bytes], act: Callable[[], object]) -> list[Sent]:
    """What was sent around the act."""
    sending = asyncio.create_task(load(url, data))
    await asyncio.sleep(AT)
    await asyncio.to_thread(act)
    return await sending


def kill(part: str) -> None:
    """Kills one process of that name."""
    found = processes(part)
    assert found, part
    found[0].kill()


def row(name: str, sent: list[Sent]) -> str:
    """Outcomes, the longest time without a 200, and when as many came as before."""
    failed = Counter(one.outcome for one in sent if one.outcome != "200")
    good = np.array(sorted(one.over for one in sent if one.outcome == "200"))
    gap = np.diff([0.0, *good, SECONDS]).max()
    told = ", ".join(f"{count} {kind}" for kind, count in failed.most_common()) or "none"
    inside = sum(failed.values()) - failed["ConnectError"]
    return f"| {name} | {len(sent)} | {sum(failed.values())} | {inside} | {told} | {gap:.2f} | {_back(good)} |"


def _back(good: np.ndarray) -> str:
    before = ((good >= 1) & (good < AT)).sum() / (AT - 1)
    for at in np.arange(AT, SECONDS - WINDOW, 0.1):
        if ((good >= at) & (good < at + WINDOW)).sum() >= BACK * before * WINDOW:
            return f"{at - AT:.1f}"
    return f"not within {SECONDS - AT:g}"


async def measure(url: str, data: list[bytes], acts: Acts) -> list[str]:
    """The table's rows."""
    await closed_loop(url, data, CLIENTS, 3)
    rows = []
    for name, (load, act) in acts.items():
        rows.append(row(name, await fault(load, url, data, act)))
        print(rows[-1], flush=True)
        await closed_loop(url, data, CLIENTS, 3)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", action="store_true", help="also write benchmarks/results/serve_faults.md")
    options = parser.parse_args()
    os.environ.update(ENVIRONMENT)
    with temporary() as name:
        folder = Path(name)
        write_bundle(folder / "oc")
        write_bundle(folder / "next", "knn")
        write_photographs(folder / "photos", range(300, 306), sidecars=False)
        data = [sorted((folder / "photos").glob("*.jpg"))[2].read_bytes()]
        config = ServeConfig(detector=folder / "oc", port=free_port(), model_cpus=0.5)

        def replace() -> None:
            shutil.rmtree(config.detector)
            shutil.copytree(folder / "next", config.detector)
            update(config)

        one: Acts = {
            "nothing": (plain, lambda: None),
            "rolling update of the bundle": (plain, replace),
            "model replica killed": (plain, partial(kill, MODEL)),
            "decode replica killed": (plain, partial(kill, DECODE)),
            "decoding process killed": (plain, partial(kill, CHILD)),
            "front replica killed": (plain, partial(kill, FRONT)),
            "proxy killed": (plain, partial(kill, PROXY)),
            "proxy killed, `client.py` asks": (with_client, partial(kill, PROXY)),
        }
        two: Acts = {
            "model replica killed, 1 of 2": (plain, partial(kill, MODEL)),
            "decode replica killed, 1 of 2": (plain, partial(kill, DECODE)),
            "front replica killed, 1 of 2": (plain, partial(kill, FRONT)),
        }
        with cluster(RayConfig(num_cpus=4)):
            with running(config) as url:
                rows = asyncio.run(measure(url, data, one))
            double = config.model_copy(update={"replicas": 2, "decoders": 2, "fronts": 2})
            with running(double) as url:
                rows += asyncio.run(measure(url, data, two))
    lines = [
        "# Faults under load",
        "",
        *inputs.header(),
        "",
        f"{CLIENTS} clients for {SECONDS:g} s, the fault after {AT:g} s; a client waits 0.05 s after a failure. One "
        "replica of each part unless a row says otherwise. Refused connections (ConnectError) never reached the "
        f"service. It is back when within {WINDOW:g} s it gives {BACK:.0%} of the answers it gave before.",
        "",
        "| fault | requests | failed | of these, taken in | failures by kind | longest time without a 200, s "
        "| back after, s |",
        "|---|---|---|---|---|---|---|",
        *rows,
    ]
    inputs.publish("\n".join(lines) + "\n", "serve_faults", options.write)


if __name__ == "__main__":
    main()
