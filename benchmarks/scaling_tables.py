"""The model's tables: a step's work and messages, and what follows for H100s on named networks."""

from collections.abc import Mapping

import cv2
import inputs
import numpy as np
import torch
from scaling_model import (
    H100,
    NETWORKS,
    Op,
    collectives,
    compute_time,
    efficiency,
    largest_batch,
    live_activations,
    memory,
    network_time,
)
from scaling_work import TASKS, Copies, Kept, kept, step_ops
from traffic import Sizes, step_traffic

from blades_dist.config import BilevelConfig, ModelConfig, TrainConfig
from blades_dist.data.crops import stored_crop
from blades_dist.distributed import World
from blades_dist.models.batchnorm import BatchNorm2d
from blades_dist.models.joint import build_joint_model

ROWS, PIXELS = 48, 224
WORKERS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024)
ROUTES: dict[str, dict[str, object]] = {
    "none (lambda fixed)": {"weighting": "equal"},
    "exact": {},
    "exact, reuse": {"reuse_gradient": True},
    "exact, reuse, sync local": {"reuse_gradient": True, "sync": "local"},
    "alternating": {"route": "alternating"},
    "alternating, sync local": {"route": "alternating", "sync": "local"},
}


def batchnorm_layers(model: torch.nn.Module) -> int:
    """BatchNorm layers whose statistics span workers."""
    return sum(isinstance(layer, BatchNorm2d) and layer.mode == "sync" for layer in model.modules())


def work(config: ModelConfig, pixels: int) -> tuple[dict[str, dict[int, list[Op]]], Kept, list[str]]:
    """Every route's operations alone and beside others, what a forward keeps, and their table."""
    ops: dict[str, dict[int, list[Op]]] = {}
    lines = [
        "## A step's own work",
        "",
        f"Counted on the real model and loop, operation by operation, in bf16 under autocast at {pixels} px, as CUDA "
        "would do it (the optimiser on all parameters at once, the losses in one kernel); small batches and pictures "
        f"of two sizes give what grows with them. For {ROWS} photographs a worker. Bytes: what operations read and "
        "write if nothing is fused. H100: predicted, not measured (scaling_model.py says from what).",
        "",
        "| route | TFLOP | GB moved | operations | H100, ms | of it bound by launches | beside others: GB | operations "
        "| H100, ms |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for route, settings in ROUTES.items():
        # A route's messages do not change its own work.
        key = route.replace(", sync local", "")
        if key in ops:
            ops[route] = ops[key]
            continue
        ops[route] = {
            1: step_ops(config, pixels, True, World(), settings),
            2: step_ops(config, pixels, True, Copies(2), settings),
        }
        cells = []
        for number, found in ops[route].items():
            flops, moved = (sum(op.at(ROWS)[i] for op in found) for i in (0, 1))
            seconds = compute_time(found, ROWS, H100)
            works = [(op, max(op.at(ROWS)[0] / H100.flops, op.at(ROWS)[1] / H100.bandwidth)) for op in found]
            bound = sum(op.launches for op, work in works if work < op.launches * H100.launch)
            cells += [f"{flops / 1e12:.2f}"] if number == 1 else []
            cells += [f"{moved / 1e9:.0f}", f"{sum(op.launches for op in found)}", f"{seconds * 1e3:.0f}"]
            cells += [f"{bound * H100.launch / seconds:.0%}"] if number == 1 else []
        lines.append(f"| {route} | {' | '.join(cells)} |")
        print(lines[-1], flush=True)
    found_kept = kept(config, pixels, True, World())
    lines += [
        "",
        f"A forward keeps {found_kept.saved / 1e6:.0f} MB a photograph for its backward and "
        f"{found_kept.saved_fixed / 1e6:.0f} MB for the prompts; `exact` keeps {found_kept.remembered / 1e6:.0f} MB a "
        "photograph more for forward mode.",
        "",
    ]
    return ops, found_kept, lines


def elsewhere(config: ModelConfig, ops: Mapping[str, Mapping[int, list[Op]]]) -> list[str]:
    """Predicted efficiency on named networks, and what waits for what."""
    model = build_joint_model(config, TASKS, 0)
    sizes, layers = Sizes.of(model), batchnorm_layers(model)
    lines = [
        "## Predicted: H100 nodes of eight on five networks",
        "",
        f"**Predictions: no GPU was at hand.** {ROWS} photographs a GPU at every size (weak scaling), bf16, ZeRO 0, an "
        "outer step in every step, nothing overlapped (as `overlap_comm: false` says). Efficiency is a lone GPU's step "
        "time over the step time of N. Beside others a step does more work of its own (synchronised BatchNorm is not "
        "one fused kernel), so even on NVLink it is below 1.",
        "",
    ]
    frozen = build_joint_model(config.model_copy(update={"batchnorm": "frozen"}), TASKS, 0)
    still = Sizes.of(frozen)
    variants = [(route, sizes, layers, route, 0) for route in ROUTES]
    variants += [("exact, reuse; ZeRO 1", sizes, layers, "exact, reuse", 1)]
    variants += [(f"{route}; BatchNorm frozen", still, 0, route, 0) for route in ("exact", "exact, reuse, sync local")]
    for network in NETWORKS:
        lines += [f"### {network.name}", "", f"| route | {' | '.join(map(str, WORKERS))} |"]
        lines += ["|" + "---|" * (len(WORKERS) + 1)]
        for name, own_sizes, own_layers, route, zero in variants:
            cells = []
            for workers in WORKERS:
                train = TrainConfig(workers=workers, batch_size=ROWS, zero_stage=zero)
                bilevel = BilevelConfig.model_validate(ROUTES[route])
                calls = collectives(own_sizes, own_layers, TASKS, bilevel, train, True)
                alone = compute_time(ops[route][1], ROWS, H100)
                together = compute_time(ops[route][2 if workers > 1 and own_layers else 1], ROWS, H100)
                cells.append(f"{efficiency(alone, together, network_time(network, workers, calls)):.2f}")
            lines.append(f"| {name} | {' | '.join(cells)} |")
        lines.append("")
    lines += _shares(sizes, layers, ops)
    return lines


def _shares(sizes: Sizes, layers: int, ops: Mapping[str, Mapping[int, list[Op]]]) -> list[str]:
    lines = [
        "### Where the time goes: route `exact`, ZeRO 0",
        "",
        "| network | GPUs | own work, ms | BatchNorm | gradient, v, look-ahead gradient | losses |",
        "|---|---|---|---|---|---|",
    ]
    for network in NETWORKS[1::2]:
        for workers in (8, 64, 256, 1024):
            train = TrainConfig(workers=workers, batch_size=ROWS)
            parts = network_time(network, workers, collectives(sizes, layers, TASKS, BilevelConfig(), train, True))
            big = sum(parts.get(name, 0.0) for name in ("gradient", "v", "look-ahead gradient"))
            cells = [compute_time(ops["exact"][2], ROWS, H100), parts["batchnorm"], big]
            cells += [parts["losses"]]
            text = " | ".join(f"{1e3 * value:.0f}" for value in cells)
            lines.append(f"| {network.name} | {workers} | {text} |")
    return [*lines, ""]


def messages(config: ModelConfig) -> list[str]:
    sizes = Sizes.of(build_joint_model(config, TASKS, 0))
    lines = [
        "## Bytes a worker hands over in a step, MB",
        "",
        f"P = {sizes.params / 1e6:.1f} M parameters, {sizes.channels} channels of BatchNorm; fp32, ZeRO 0. In brackets "
        "what BatchNorm's statistics are of it.",
        "",
        "| route | 8 workers | 64 | 1024 |",
        "|---|---|---|---|",
    ]
    for route, settings in ROUTES.items():
        cells = []
        for workers in (8, 64, 1024):
            train = TrainConfig(workers=workers, batch_size=ROWS)
            moved = step_traffic(sizes, TASKS, BilevelConfig.model_validate(settings), train, True)
            cells.append(f"{sum(moved.values()) / 1e6:.0f} ({moved['batchnorm'] / 1e6:.0f})")
        lines.append(f"| {route} | {' | '.join(cells)} |")
    return [*lines, ""]


def memories(config: ModelConfig, found: Kept) -> list[str]:
    params = Sizes.of(build_joint_model(config, TASKS, 0)).params
    lines = [
        "## Memory a GPU, and the largest batch of an 80 GB one",
        "",
        "Added up, not measured; a tenth of the memory is left alone. Beside activations, GB:",
        "",
        "| route | ZeRO | 1 GPU | 8 GPUs | 64 GPUs | activations, MB a photograph | largest batch at 8 GPUs |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, route, reuse in (("none", "none", False), ("exact", "exact", False), ("exact, reuse", "exact", True),
                               ("alternating", "alternating", False)):  # fmt: skip
        live = live_activations(route, reuse, found.saved, found.remembered)
        for zero in (0, 1, 2):
            fixed = [
                sum(memory(params, n, zero, route, reuse, "exact").values()) + found.saved_fixed for n in (1, 8, 64)
            ]
            rows = largest_batch(H100, fixed[1], live)
            cells = [*(f"{value / 1e9:.2f}" for value in fixed), f"{live / 1e6:.0f}", str(rows)]
            lines.append(f"| {name} | {zero} | {' | '.join(cells)} |")
    return [*lines, ""]


def data(ops: Mapping[str, Mapping[int, list[Op]]], decoded_a_core: float = 322) -> list[str]:
    """What one GPU eats; ``decoded_a_core`` is results/stream.md's rate of one core."""
    files = sorted(inputs.photographs(24, 320).glob("*.jpg"))
    if not files:
        raise FileNotFoundError("the simulator wrote no photograph")
    stored = np.mean([len(stored_crop(cv2.cvtColor(cv2.imread(str(f)), cv2.COLOR_BGR2RGB))) for f in files])
    lines = [
        "## Photographs a GPU eats",
        "",
        f"A face stored at 320 x 320 takes {stored / 1e3:.0f} kB (mean of {len(files)} simulated photographs; real "
        f"ones differ), and one core decodes {decoded_a_core:.0f} a second (results/stream.md, another processor's may "
        "differ). Training and validation photographs together. H100 rates are predictions.",
        "",
        "| route | photographs/s a GPU | MB/s read | cores that decode | 1,024 GPUs: GB/s read | cores |",
        "|---|---|---|---|---|---|",
    ]
    for route in ("none (lambda fixed)", "exact", "alternating"):
        seen = ROWS * (1 if route.startswith("none") else 2)
        rate = seen / compute_time(ops[route][1], ROWS, H100)
        cores = rate / decoded_a_core
        lines.append(
            f"| {route} | {rate:.0f} | {rate * stored / 1e6:.0f} | {cores:.1f} | {1024 * rate * stored / 1e9:.0f} | "
            f"{1024 * cores:.0f} |"
        )
    return [*lines, ""]
