"""Time of a whole training step by route, against the plain step, full-size model, in one run.

python benchmarks/bilevel_step.py                      2 CPU threads, batch 8 (the committed table)
python benchmarks/bilevel_step.py --write              also writes benchmarks/results/bilevel_step_{cpu,cuda}.md
python benchmarks/bilevel_step.py --device cuda --batch 48 --precision bf16 [--compile] [--profile]
python benchmarks/bilevel_step.py --quick              tiny model: does it work

``reference`` is a step in the manner of the paper's released code, written anew on the same towers: prompts padded to
77 tokens and encoded in every forward, central differences from forwards that build their graph, nothing reused.
Every round runs each variant once, in turn, so that a machine that slows down slows all of them. Needs torch,
transformers, numpy, pydantic, pyyaml, safetensors; PYTHONPATH=. where the package is not installed.
"""

import argparse
import copy
import os
import platform
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
import transformers
from device import cpu_name
from torch import Tensor, nn
from torch.func import functional_call
from torch.utils.flop_counter import FlopCounterMode

from blades_dist.arithmetic import set_precision
from blades_dist.bilevel.build import build_weights
from blades_dist.config import BilevelConfig, LossConfig, ModelConfig, TrainConfig
from blades_dist.distributed import World
from blades_dist.losses.reference import task_losses
from blades_dist.models.joint import JointModel, build_joint_model, compile_towers
from blades_dist.models.text import TextTower
from blades_dist.tasks import ABSENT, task_set
from blades_dist.training.determinism import keep_freed_memory
from blades_dist.training.sample import Sample
from blades_dist.training.step import BilevelStep
from blades_dist.training.torch_engine import PlainEngine

TASKS, LR, PADDED = task_set(), 1e-5, 77
VARIANTS: dict[str, dict[str, object]] = {
    "plain (lambda fixed)": {"weighting": "equal"},
    "exact": {},
    "exact, reuse_gradient": {"reuse_gradient": True},
    "exact, reuse_gradient, every 4": {"reuse_gradient": True, "every": 4},
    "exact, reuse_gradient, adamw look-ahead": {"reuse_gradient": True, "lookahead": "adamw"},
    "alternating": {"route": "alternating"},
    "alternating, every 4": {"route": "alternating", "every": 4},
    "finite_difference": {"route": "finite_difference"},
}


class PaddedText(nn.Module):
    """A GPT-2 tower's weights over (C, 77) padded tokens, all of them computed."""

    def __init__(self, tower: TextTower) -> None:
        super().__init__()
        self.backbone: Any
        self.backbone, self.project = copy.deepcopy(tower.backbone), copy.deepcopy(tower.project)
        self.backbone.set_attn_implementation("eager")
        places = self.backbone.wpe.weight.data
        self.backbone.wpe = nn.Embedding.from_pretrained(F.pad(places, (0, 0, 0, PADDED - len(places))), freeze=False)
        tokens, self.last = tower.tokens, tower.last
        self.tokens = F.pad(tokens, (0, PADDED - tokens.shape[1]))

    def forward(self) -> Tensor:
        hidden = self.backbone(input_ids=self.tokens, use_cache=False).last_hidden_state
        return self.project(hidden[torch.arange(len(self.last), device=hidden.device), self.last])


class Released:
    """A step as the released code takes it."""

    def __init__(self, model: JointModel, device: torch.device) -> None:
        self.model = copy.deepcopy(model)
        self.model.text = PaddedText(model.text).to(device)  # type: ignore[assignment]
        self.params = dict(self.model.named_parameters())
        self.optimizer = torch.optim.AdamW(self.params.values(), lr=LR, weight_decay=1e-3)
        self.weights = torch.ones(len(TASKS), device=device, requires_grad=True)
        self.outer = torch.optim.Adam([self.weights], lr=3e-4)

    def losses(self, params: Mapping[str, Tensor], part: Sample) -> Tensor:
        logits = functional_call(self.model, dict(params), (part.images,))
        return task_losses(logits, part.labels, TASKS, LossConfig())

    def step(self, train: Sample, val: Sample) -> None:
        values = list(self.params.values())
        inner = torch.autograd.grad(self.weights.detach() @ self.losses(self.params, train), values)
        ahead = {
            name: (value - LR * (g + 1e-3 * value)).detach().requires_grad_()
            for (name, value), g in zip(self.params.items(), inner, strict=True)
        }
        v = torch.autograd.grad(self.losses(ahead, val)[TASKS.proxy], list(ahead.values()))
        size = 0.01 / float(torch.stack([part.norm() for part in v]).norm())
        ends = []
        for sign in (1, -1):
            point = {name: p + sign * size * d for (name, p), d in zip(self.params.items(), v, strict=True)}
            (end,) = torch.autograd.grad(self.weights @ self.losses(point, train), [self.weights])
            ends.append(end)
        self.weights.grad = -LR * (ends[0] - ends[1]) / (2 * size)
        self.outer.step()
        (self.weights.detach() @ self.losses(self.params, train)).backward()
        self.optimizer.step()
        self.optimizer.zero_grad()


def batch(rows: int, size: int, device: torch.device, seed: int) -> Sample:
    """Random pictures, and labels of which a fifth is absent."""
    generator = torch.Generator().manual_seed(seed)
    highs = [3] * 4 + [10, 8, 7, 2, 6] + [2] * 4
    labels = torch.stack([torch.randint(0, high, (rows,), generator=generator) for high in highs], dim=1)
    labels[:, :9][torch.rand(rows, 9, generator=generator) < 0.2] = ABSENT
    return Sample(torch.rand(rows, 3, size, size, generator=generator).to(device), labels.to(device), [])


def runners(options: argparse.Namespace, device: torch.device) -> dict[str, tuple[Callable[[], None], int]]:
    """Variant to a function that takes its steps, and how many steps those are."""
    config = ModelConfig()
    if options.quick:
        config = ModelConfig.model_validate(
            {"image": {"preset": "resnet_tiny"}, "text": {"layers": 2, "width": 64, "heads": 2}, "embed_dim": 64}
        )
    size = 64 if options.quick else 224
    model = build_joint_model(config, TASKS, 0).train().to(device)
    train, val = (batch(options.batch, size, device, seed) for seed in (0, 1))
    found: dict[str, tuple[Callable[[], None], int]] = {}
    for name, values in VARIANTS.items():
        if options.only and name not in options.only:
            continue
        found[name] = _ours(name, copy.deepcopy(model), values, train, val, options)
    if not options.only or "reference" in options.only:
        released = Released(model, device)
        if options.precision == "bf16":
            released.model.autocast_dtype = torch.bfloat16
        found["reference"] = (lambda: released.step(train, val), 1)
    return found


def _ours(
    name: str, model: JointModel, values: dict[str, object], train: Sample, val: Sample, options: argparse.Namespace
) -> tuple[Callable[[], None], int]:
    if options.precision == "bf16":
        model.autocast_dtype = torch.bfloat16
    if options.compile:
        compile_towers(model)
    settings, bilevel = TrainConfig(lr=LR), BilevelConfig.model_validate(values)
    engine = PlainEngine(model, settings, World())
    step = BilevelStep(engine, TASKS, build_weights(bilevel, TASKS), LossConfig(), bilevel, settings, World())
    steps = bilevel.every

    def run() -> None:
        for i in range(steps):
            step.run(i, LR, [train], val if step.wants_validation(i) else None)

    return run, steps


def measure(found: dict[str, tuple[Callable[[], None], int]], rounds: int, device: torch.device) -> dict[str, Tensor]:
    """Seconds a step (rounds,), after one round that is not counted."""
    times: dict[str, list[float]] = {name: [] for name in found}
    for number in range(rounds + 1):
        for name, (run, steps) in found.items():
            begin = time.perf_counter()
            run()
            if device.type == "cuda":
                torch.cuda.synchronize()
            if number:
                times[name].append((time.perf_counter() - begin) / steps)
    return {name: torch.tensor(values) for name, values in times.items()}


def table(options: argparse.Namespace, device: torch.device) -> str:
    found = runners(options, device)
    times = measure(found, options.rounds, device)
    plain = times["plain (lambda fixed)"]
    lines = [
        f"# A training step, batch {options.batch}, {options.precision}{', compiled' if options.compile else ''}",
        "",
        f"{'Tiny model' if options.quick else 'ResNet-50 at 224 pixels, 12-layer GPT-2 tower of width 512'}, AdamW, "
        f"{options.rounds} rounds of every variant in turn; median (20%, 80%). Ratios: median over rounds.",
        "",
        f"- device: {_name(device)}, load {os.getloadavg()[0]:.1f} when measured (others may have been at work)",
        f"- Python {platform.python_version()}, torch {torch.__version__}, transformers {transformers.__version__}",
        "",
        "| step | s a step | images/s | x plain | reference x slower |",
        "|---|---|---|---|---|",
    ]
    for name, seconds in times.items():
        low, mid, high = (float(seconds.quantile(q)) for q in (0.2, 0.5, 0.8))
        slower = f"{float((times['reference'] / seconds).median()):.2f}" if "reference" in times else ""
        lines.append(
            f"| {name} | {mid:.3f} ({low:.3f}, {high:.3f}) | {options.batch / mid:.1f} | "
            f"{float((seconds / plain).median()):.2f} | {slower} |"
        )
    if device.type == "cuda":
        lines += ["", *_utilisation(found, times, options, device)]
    else:
        lines += ["", "No CUDA device: rates in bf16 on a GPU were not measured."]
    return "\n".join(lines) + "\n"


def _utilisation(
    found: dict[str, tuple[Callable[[], None], int]],
    times: dict[str, Tensor],
    options: argparse.Namespace,
    device: torch.device,
) -> list[str]:
    """Achieved FLOP/s over the card's own rate at a large matrix product, for the plain step."""
    dtype = torch.bfloat16 if options.precision == "bf16" else torch.float32
    a = torch.randn(8192, 8192, device=device, dtype=dtype)
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    for i in range(13):
        if i == 3:
            start.record()
        a @ a
    end.record()
    torch.cuda.synchronize()
    peak = 10 * 2 * 8192**3 / (start.elapsed_time(end) / 1e3)
    lines = [f"Matrix product 8192^3 in {dtype}: {peak / 1e12:.0f} TFLOP/s.", ""]
    for name in ("plain (lambda fixed)", "exact, reuse_gradient", "alternating"):
        if name not in found or found[name][1] != 1:
            continue
        with FlopCounterMode(display=False) as counter:
            found[name][0]()
        rate = counter.get_total_flops() / float(times[name].median())
        lines.append(f"- {name}: {rate / 1e12:.1f} TFLOP/s, {rate / peak:.1%} of that")
    return lines


def profiled(options: argparse.Namespace, device: torch.device) -> str:
    """The largest costs of one step of each chosen variant."""
    activities = [torch.profiler.ProfilerActivity.CPU]
    if device.type == "cuda":
        activities.append(torch.profiler.ProfilerActivity.CUDA)
    parts = []
    for name, (run, _) in runners(options, device).items():
        run()
        with torch.profiler.profile(activities=activities) as found:
            run()
        key = "self_cuda_time_total" if device.type == "cuda" else "self_cpu_time_total"
        parts.append(f"{name}\n{found.key_averages().table(sort_by=key, row_limit=12, max_name_column_width=60)}")
    return "\n".join(parts)


def _name(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{cpu_name()}, {torch.get_num_threads()} threads"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--precision", choices=["fp32", "tf32", "bf16"], default="fp32")
    parser.add_argument("--threads", type=int, default=2, help="CPU threads of torch")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--only", nargs="*", help="variants; plain is needed for ratios")
    parser.add_argument("--profile", action="store_true", help="print each variant's largest costs instead")
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--write", action="store_true")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    set_precision(options.precision)
    keep_freed_memory()  # as a CPU trainer does; every variant gains
    device = torch.device(options.device)
    if options.profile:
        print(profiled(options, device))
        return
    text = table(options, device)
    print(text)
    if options.write:
        target = Path(__file__).parent / "results" / f"bilevel_step_{device.type}.md"
        target.write_text(text)


if __name__ == "__main__":
    main()
