"""What requests see when parts of the service are killed (SIGKILL) under load, and during a rolling update.

python benchmarks/serve_faults.py            prints the table
python benchmarks/serve_faults.py --write    also writes benchmarks/results/serve_faults.md

Clients ask in a closed loop on connections they keep, and never repeat a request. The detector is the tests' small one.
"""

import argparse
import asyncio
import shutil
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import inputs
from service_inputs import Sent, closed_loop, free_port, processes, temporary
from toy_detector import write_bundle, write_photographs

from blades_dist.config import RayConfig, ServeConfig
from blades_dist.raylocal import cluster
from blades_dist.serving.app import running, update

CLIENTS = 6
SECONDS, AT = 14.0, 4.0  # of a run, and when it happens


async def fault(url: str, data: list[bytes], act: Callable[[], object]) -> list[Sent]:
    """What was sent around the act."""
    load = asyncio.create_task(closed_loop(url, data, CLIENTS, SECONDS))
    await asyncio.sleep(AT)
    await asyncio.to_thread(act)
    return await load


def kill(part: str) -> Callable[[], None]:
    """Kills one process of that name."""

    def act() -> None:
        found = processes(part)
        assert found, part
        found[0].kill()

    return act


def row(name: str, sent: list[Sent]) -> str:
    """Outcomes, and the longest time without a 200."""
    failed = Counter(one.outcome for one in sent if one.outcome != "200")
    good = sorted(one.over for one in sent if one.outcome == "200")
    ends = [*good, SECONDS]
    gap = max(b - a for a, b in zip([0.0, *good], ends, strict=True))
    told = ", ".join(f"{count} {kind}" for kind, count in failed.most_common()) or "none"
    refused = [one for one in sent if one.outcome == "ConnectError"]
    inside = sum(failed.values()) - len(refused)
    return f"| {name} | {len(sent)} | {sum(failed.values())} | {inside} | {told} | {gap:.2f} |"


async def measure(url: str, data: list[bytes], config: ServeConfig, folder: Path) -> list[str]:
    """The table's rows."""

    def replace() -> None:
        shutil.rmtree(config.detector)
        shutil.copytree(folder / "next", config.detector)
        update(config)

    await closed_loop(url, data, CLIENTS, 3)
    acts = {
        "nothing": lambda: None,
        "rolling update of the bundle": replace,
        "model replica killed": kill("ServeReplica:blades:model-default"),
        "decode replica killed": kill("ServeReplica:blades:decode"),
        "decoding process killed": kill("serving.decoding_child"),
        "front replica killed": kill("ServeReplica:blades:front"),
        "proxy killed": kill("ray::ProxyActor"),
    }
    rows = []
    for name, act in acts.items():
        rows.append(row(name, await fault(url, data, act)))
        print(rows[-1], flush=True)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", action="store_true", help="also write benchmarks/results/serve_faults.md")
    options = parser.parse_args()
    with temporary() as name:
        folder = Path(name)
        write_bundle(folder / "oc")
        write_bundle(folder / "next", "knn")
        write_photographs(folder / "photos", range(300, 306), sidecars=False)
        data = [sorted((folder / "photos").glob("*.jpg"))[2].read_bytes()]
        config = ServeConfig(detector=folder / "oc", port=free_port(), model_cpus=0.5)
        with cluster(RayConfig(num_cpus=4)), running(config) as url:
            rows = asyncio.run(measure(url, data, config, folder))
    lines = [
        "# Faults under load",
        "",
        *inputs.header(),
        "",
        f"{CLIENTS} clients for {SECONDS:g} s, the fault after {AT:g} s; a client waits 0.05 s after a failure. One "
        "replica of each part. Refused connections (ConnectError) never reached the service. A time of 10 s or more "
        "may reach to the end of the run: then the part was not back within it.",
        "",
        "| fault | requests | failed | of these, taken in | failures by kind | longest time without a 200, s |",
        "|---|---|---|---|---|---|",
        *rows,
    ]
    inputs.publish("\n".join(lines) + "\n", "serve_faults", options.write)


if __name__ == "__main__":
    main()
