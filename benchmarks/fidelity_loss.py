"""Time and memory of the fidelity losses with their logit gradient: fused, tiled, eager and compiled.

python benchmarks/fidelity_loss.py            prints the table; on a CUDA device where there is one
python benchmarks/fidelity_loss.py --quick    small batches, few runs: does it work
python benchmarks/fidelity_loss.py --write    also writes benchmarks/results/fidelity_loss_{cuda,cpu}.md

Needs torch, numpy, pydantic, pyyaml and, for the fused kernel, triton; PYTHONPATH=. where the package is not installed.
"""

import argparse
import importlib.metadata
import json
import os
import platform
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from device import cpu_name
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

from blades_dist.config import LossConfig
from blades_dist.distributed import World
from blades_dist.losses import reference
from blades_dist.losses.fidelity import fidelity
from blades_dist.tasks import REGIONS, task_set

SIZES, QUICK = (16, 48, 128, 512, 2048, 8192), (16, 128)
TASKS, CONFIG = task_set(), LossConfig()
COMPILED = "compiled reference"
PATHS = ("eager reference", COMPILED, "tiled torch", "fused Triton")
# What the eager reference keeps for its backward (26 bytes measured with a quarter of the labels absent), and reserve.
REFERENCE_BYTES_A_PAIR = 40 * sum(task.kind == "ordinal" for task in TASKS.tasks)
Run = Callable[[], object]


def table(device: torch.device, sizes: tuple[int, ...], seconds: float, compiled: bool) -> str:
    """Markdown table, one line a batch size and path."""
    paths = [path for path in PATHS if compiled or path != COMPILED]
    lines = [
        f"# Fidelity losses and logit gradient, {len(TASKS)} tasks, {TASKS.width} columns, fp32",
        "",
        f"Losses and gradient together, one process, wall time of a call{_waits(device)}; median (20%, 80%) of the "
        "runs. Peak memory: what the call allocates at most beyond its inputs, outputs included.",
        "",
        f"- device: {_name(device)}, load {os.getloadavg()[0]:.1f} when measured (others may have been at work)",
        f"- Python {platform.python_version()}, torch {torch.__version__}, triton {_version('triton')}",
    ]
    if device.type == "cpu":
        lines.append("- **no CUDA device: the fused kernel was not run**, the other rows are of one CPU thread")
    lines += ["", "| batch | path | runs | ms | x eager | peak MiB | x eager |", "|---|---|---|---|---|---|---|"]
    for size in sizes:
        base: tuple[float, float] | None = None
        for path in paths:
            try:
                times, peak = _measure(_call(path, size, device), device, seconds)
            except _NotRun as reason:
                lines.append(f"| {size} | {path} | n/a: {reason} | | | | |")
                continue
            middle, low, high = np.quantile(times, (0.5, 0.2, 0.8)) * 1e3
            base = (middle, peak) if path == PATHS[0] else base
            ratios = (
                [f"{value / of:.2f}" for value, of in zip((middle, peak), base, strict=True)] if base else ["n/a"] * 2
            )
            lines.append(
                f"| {size} | {path} | {len(times)} | {middle:.3f} ({low:.3f}, {high:.3f}) | {ratios[0]} "
                f"| {peak / 2**20:.2f} | {ratios[1]} |"
            )
    return "\n".join(lines) + "\n"


class _NotRun(Exception):
    """Why a line of the table stays empty."""


def _call(path: str, size: int, device: torch.device) -> Run:
    logits, labels = _problem(size, device)
    if path == "tiled torch":
        return lambda: fidelity(logits, labels, TASKS, LossConfig(kernel="torch"), World())
    if path == "fused Triton":
        if device.type != "cuda":
            raise _NotRun("no CUDA device")
        if _version("triton") == "none":
            raise _NotRun("triton is not installed")
        return lambda: fidelity(logits, labels, TASKS, LossConfig(kernel="triton"), World())
    need, free = size * (size - 1) // 2 * REFERENCE_BYTES_A_PAIR, _free(device)
    if need > 0.7 * free:
        raise _NotRun(f"all pairs need about {need / 2**30:.1f} GiB, {free / 2**30:.1f} GiB are free")

    def losses(z: Tensor) -> Tensor:
        return reference.task_losses(z, labels, TASKS, CONFIG)

    if path == COMPILED:
        torch._dynamo.reset()
        losses = torch.compile(losses)
    leaf = logits.requires_grad_()

    def run() -> tuple[Tensor, ...]:
        found = losses(leaf)
        return found.detach(), *torch.autograd.grad(found.sum(), leaf)

    try:
        run()
    except Exception as error:
        if path == "eager reference":
            raise
        raise _NotRun(f"torch.compile failed: {type(error).__name__}") from error
    return run


def _problem(size: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Random logits (B, C), and labels of which some are absent in every column."""
    generator = torch.Generator().manual_seed(size)
    highs = [
        high for task in TASKS.tasks for high in ([2] * len(REGIONS) if task.kind == "fine" else [len(task.classes)])
    ]
    labels = torch.stack([torch.randint(-1, high, (size,), generator=generator) for high in highs], dim=1)
    return (3 * torch.randn(size, TASKS.width, generator=generator)).to(device), labels.to(device)


def _measure(run: Run, device: torch.device, seconds: float) -> tuple[np.ndarray, float]:
    """Wall seconds of each run, 5 to 200 of them in about ``seconds``, and the peak bytes of one."""
    for _ in range(3):
        run()
    peak = _peak(run, device)
    times: list[float] = []
    while len(times) < 5 or (sum(times) < seconds and len(times) < 200):
        _wait(device)
        start = time.perf_counter()
        run()
        _wait(device)
        times.append(time.perf_counter() - start)
    return np.array(times), peak


def _peak(run: Run, device: torch.device) -> float:
    if device.type == "cuda":
        _wait(device)
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        result = run()
        _wait(device)
        del result
        return torch.cuda.max_memory_allocated(device) - before
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as found:
        result = run()
    del result
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "trace.json"
        found.export_chrome_trace(str(file))
        events = [event for event in json.loads(file.read_text())["traceEvents"] if event.get("name") == "[memory]"]
    moves = [event["args"]["Bytes"] for event in sorted(events, key=lambda event: event["ts"])]
    return float(np.cumsum([0, *moves]).max())


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _waits(device: torch.device) -> str:
    return " with the device idle before and after" if device.type == "cuda" else ""


def _free(device: torch.device) -> int:
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def _name(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{cpu_name()}, one thread"


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "none"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--quick", action="store_true", help="two small batch sizes and few runs")
    parser.add_argument("--compile", action="store_true", help="the compiled reference too: minutes on a GPU")
    parser.add_argument("--write", action="store_true", help="also write it under benchmarks/results")
    options = parser.parse_args()
    torch.set_num_threads(1)
    device = torch.device(options.device)
    # One shape at a time is compiled, so a table of six on a GPU would take minutes before its first useful line.
    compiled = options.compile or device.type == "cpu"
    text = table(device, QUICK if options.quick else SIZES, 0.2 if options.quick else 3.0, compiled)
    print(text)
    if options.write:
        target = Path(__file__).parent / "results" / f"fidelity_loss_{device.type}.md"
        target.parent.mkdir(exist_ok=True)
        target.write_text(text)


if __name__ == "__main__":
    main()
