"""What failures cost a pretraining run, and that its result is bitwise that of an undisturbed one.

A Ray cluster of a head and two nodes on one machine; a tiny run of two workers. First every kind of failure once, then
ten of random kinds at random steps. ``python benchmarks/chaos.py --write``
"""

import argparse
import random
import tempfile
from collections.abc import Iterable
from pathlib import Path

import ray
from device import cpu_name

from blades_dist.config import RayConfig
from blades_dist.raylocal import cluster
from blades_dist.testing.chaos import KINDS, Disturbed, End, Recovery, make_shards, plan, settings
from blades_dist.testing.hosts import Hosts, Job, hosts

RESULT = Path(__file__).parent / "results" / "chaos.md"
STEPS, EVERY = 80, 5


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", action="store_true", help=f"write {RESULT.name}")
    parser.add_argument("--seed", type=int, default=11)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        with cluster(RayConfig(num_cpus=2)):
            shards = make_shards(folder)
        with hosts(2) as nodes:
            Job(nodes, settings(shards, folder, "whole", STEPS, EVERY), folder / "whole.log").finish()
            whole = End.of(folder / "whole")
            dice = random.Random(options.seed)
            runs = {"one by one": list(KINDS), "at random": dice.choices(KINDS, k=10)}
            text = _page(
                [
                    _section(
                        name,
                        _run(nodes, shards, folder, name, kinds, options.seed),
                        folder / name.replace(" ", "-"),
                        whole,
                    )
                    for name, kinds in runs.items()
                ]
            )
    print(text)
    if options.write:
        RESULT.write_text(text)


def _run(nodes: Hosts, shards: Path, folder: Path, name: str, kinds: list[str], seed: int) -> list[Recovery]:
    label = name.replace(" ", "-")
    run = Disturbed(nodes, settings(shards, folder, label, STEPS, EVERY), folder / f"{label}.log", seed)
    found = []
    for kind, step in plan(kinds, STEPS, EVERY, seed):
        found.append(run.disturb(kind, step))
        print(found[-1], flush=True)
    run.job.finish()
    return found


def _section(name: str, found: list[Recovery], run: Path, whole: End) -> str:
    end = End.of(run)
    rows = [
        f"| {i} | {one.kind} | {one.reached} | {one.intact} | {one.resumed} | {one.reached - one.resumed} | "
        f"{one.seconds:.1f} |"
        for i, one in enumerate(found, 1)
    ]
    verdicts = {
        "lambda's trajectory": end.history == whole.history,
        "the photographs of every step": end.sequence == whole.sequence,
        "every tensor of the encoder": end.same_bits(whole),
    }
    equal = "; ".join(f"{what}: {'bitwise equal' if same else 'DIFFERENT'}" for what, same in verdicts.items())
    head = "| # | what | steps done | newest intact checkpoint | resumed at | steps done again | seconds |"
    return "\n".join([f"## Failures {name}", "", head, "|---|---|---|---|---|---|---|", *rows, "", equal + "."])


def _page(sections: Iterable[str]) -> str:
    return "\n\n".join(
        [
            "# Failures of a run",
            f"- device: {cpu_name()}\n- ray {ray.__version__}; head and two nodes on this machine, two workers, gloo\n"
            f"- {STEPS} steps, a checkpoint every {EVERY}; compared with an undisturbed run of the same configuration",
            "`seconds`: from the failure to the first step after it, the start of a new worker group included (on a "
            "machine that does nothing else). `while writing`: a worker is killed while a checkpoint is being written. "
            "`cut file`, `flipped bit`: the newest checkpoint is damaged, then a worker killed.",
            *sections,
            "",
        ]
    )


if __name__ == "__main__":
    main()
