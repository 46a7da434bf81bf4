"""The scaling model's tables: what a step is, what this machine says of the model, what it predicts elsewhere.

    python benchmarks/scaling.py check --write      results/scaling_check.md: 3 minutes on 2 cores, quiet ones
    python benchmarks/scaling.py predict --write    results/scaling.md: counts, so other load does not matter
    python benchmarks/scaling.py check --quick      a tiny model: does it work

Needs the package on the path: PYTHONPATH=. where it is not installed.
"""

import argparse
import os
import platform
from collections.abc import Mapping, Sequence

import inputs
import numpy as np
import torch
from device import cpu_name
from scaling_measure import SETTINGS, Case, collective_times, fitted, part_times, predicted, step_times, waited
from scaling_model import collectives
from scaling_tables import PIXELS, batchnorm_layers, data, elsewhere, memories, messages, work
from scaling_work import TASKS
from traffic import Sizes

from blades_dist.config import BilevelConfig, ModelConfig, TrainConfig
from blades_dist.models.joint import build_joint_model
from blades_dist.testing.gloo import GlooPool

CASES = (
    Case(
        "demo's model, 128 px, 16 rows a worker",
        {
            "image": {"preset": "resnet_tiny", "highpass": 6.0},
            "text": {"layers": 2, "width": 64, "heads": 4},
            "embed_dim": 128,
        },
        128,
        16,
    ),
    Case(
        "ResNet-50 with one text layer, 64 px, 2 rows a worker",
        {"image": {"preset": "resnet50"}, "text": {"layers": 1, "width": 512, "heads": 8}, "embed_dim": 768},
        64,
        2,
    ),
)
TINY = Case(
    "tiny", {"image": {"preset": "resnet_tiny"}, "text": {"layers": 1, "width": 32, "heads": 2}, "embed_dim": 32}, 64, 2
)


def check(cases: Sequence[Case], counts: Sequence[int], repeats: int, steps: int) -> list[str]:
    """Predicted and measured steps of gloo workers on this machine."""
    lines = [
        "## The model against 1, 2 and 4 workers of this machine",
        "",
        "Workers are processes with one thread each, joined by gloo on loopback; fp32, the plain engine. Predicted: "
        "the step's parts (forward, backward, ...), each timed alone in as many processes at once, no messages, plus "
        "the step's collectives by traffic.py on a latency and a bandwidth that were fitted to all-reduces and "
        "all-gathers timed alone. No whole step was used. Four workers share two cores. Median of "
        f"{steps} steps after one.",
        "",
        "| model | route | workers | own work, s | messages, s | predicted, s | measured, s | error | efficiency "
        "predicted | measured |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    links, errors = {}, []
    alone: dict[tuple[str, str], tuple[float, float]] = {}
    for count in counts:
        pool = GlooPool(count)
        try:
            if count > 1:
                times = pool.run(collective_times, repeats * 10)[0]
                links[count] = {kind: fitted(times, kind) for kind in ("all_reduce", "all_gather")}
            for case in cases:
                model = build_joint_model(case.config, TASKS, 0)
                parts = _median(pool.run(part_times, case, repeats))
                for route, settings in SETTINGS.items():
                    bilevel = BilevelConfig.model_validate(settings)
                    train = TrainConfig(workers=count, batch_size=case.rows)
                    calls = collectives(Sizes.of(model), batchnorm_layers(model), TASKS, bilevel, train, True, "plain")
                    own = predicted(parts, route)
                    sent = waited(links[count], calls) if count > 1 else 0.0
                    # All ranks end a step together, so the slowest one's time is the step's.
                    measured = float(np.median(np.max(pool.run(step_times, case, route, steps), axis=0)))
                    said = own + sent
                    first = alone.setdefault((case.name, route), (said, measured))
                    share = max(1.0, count / (os.cpu_count() or 1))  # cores are shared from then on
                    errors.append((count, said / measured - 1))
                    cells = [f"{value:.2f}" for value in (own, sent, said, measured)]
                    cells += [f"{said / measured - 1:+.0%}"]
                    cells += [f"{one * share / many:.2f}" for one, many in zip(first, (said, measured), strict=True)]
                    lines.append(f"| {case.name} | {route} | {count} | {' | '.join(cells)} |")
        finally:
            pool.close()
    spread = ", ".join(
        f"{count} workers {np.median([abs(e) for n, e in errors if n == count]):.0%} "
        f"(largest {max((e for n, e in errors if n == count), key=abs):+.0%})"
        for count in counts
    )
    lines += ["", f"Error, median of the absolute values: {spread}. Efficiency at 4 workers is of the two cores.", ""]
    lines += ["Fitted links (a call takes latency + bytes / bandwidth):", ""]
    for count, found in links.items():
        text = "; ".join(f"{k} {v.latency * 1e3:.2f} ms, {v.bandwidth / 1e9:.2f} GB/s" for k, v in found.items())
        lines.append(f"- {count} workers: {text}")
    return [*lines, ""]


def _median(found: Sequence[Mapping[str, float]]) -> dict[str, float]:
    return {name: float(np.median([parts[name] for parts in found])) for name in found[0]}


def header(what: str) -> list[str]:
    return [
        f"# Scaling: {what}",
        "",
        f"- device: {cpu_name()}, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f} when measured (others may have "
        "been at work)",
        f"- Python {platform.python_version()}, torch {torch.__version__}",
        "",
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["check", "predict"])
    parser.add_argument("--quick", action="store_true", help="a tiny model, one or two workers")
    parser.add_argument("--cases", type=int, default=len(CASES), help="of check: only the first so many models")
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1, help="of torch, for predict")
    parser.add_argument("--write", action="store_true")
    options = parser.parse_args()
    if options.what == "check":
        cases, counts = ((TINY,), (1, 2)) if options.quick else (CASES[: options.cases], (1, 2, 4))
        top = header("predicted and measured on this machine")
        inputs.publish("\n".join(top + check(cases, counts, 3, 3)), "scaling_check", options.write)
        return
    torch.set_num_threads(options.threads)
    full = TINY.config if options.quick else ModelConfig()
    top = header("counted here, predicted elsewhere")
    ops, kept, worked = work(full, 64 if options.quick else PIXELS)
    parts = [top, messages(full), worked, elsewhere(full, ops), memories(full, kept), data(ops)]
    inputs.publish("\n".join(line for part in parts for line in part), "scaling", options.write)


if __name__ == "__main__":
    main()
