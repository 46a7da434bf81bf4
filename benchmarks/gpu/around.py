"""The machine, the loss kernel, and DeepSpeed's stages."""

import os
import platform
import subprocess
import time
from functools import partial

import torch
import transformers
from torch import Tensor

from blades_dist.config import LossConfig
from blades_dist.distributed import World
from blades_dist.losses import fidelity as losses
from blades_dist.losses import reference
from blades_dist.training.determinism import prepare_environment
from blades_dist.training.torch_engine import PlainEngine

from .cost import ROUTES
from .problem import LR, TASKS, TINY, Check, batch, flat, peak, seconds, step_of, taker, training

ROWS = (48, 512, 2048, 8192)


def env(check: Check) -> None:
    """Device, driver, versions, the two rates that bound everything, and whether the allocator is as a run sets it."""
    versions = {
        "Python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
    }
    check.say("machine", "versions", versions | {"load": f"{os.getloadavg()[0]:.1f}"})
    if not check.cuda:
        check.say("machine", "no GPU", {"device": platform.machine()})
        return
    prepare_environment(deterministic=False)
    query = ["nvidia-smi", "--query-gpu=driver_version,memory.total", "--format=csv,noheader"]
    driver = subprocess.run(query, capture_output=True, text=True).stdout.strip()
    versions = {"driver": driver, "CUDA": str(torch.version.cuda), "cuDNN": str(torch.backends.cudnn.version())}
    check.say("machine", torch.cuda.get_device_name(check.device), versions)
    source, target = (torch.empty(2**30, dtype=torch.uint8, device=check.device) for _ in range(2))
    matrix = torch.randn(8192, 8192, device=check.device, dtype=torch.bfloat16)
    copied = seconds(lambda _: [target.copy_(source) for _ in range(10)], check, 3) / 10
    product = seconds(lambda _: [matrix @ matrix for _ in range(10)], check, 3) / 10
    expandable = any(segment["is_expandable"] for segment in torch.cuda.memory_snapshot())
    rates = {"copy TB/s": f"{2 * 2**30 / copied / 1e12:.2f}", "bf16 TFLOP/s": f"{2 * 8192**3 / product / 1e12:.0f}"}
    check.say("machine", "rates", rates | {"expandable segments": str(expandable)})


def loss(check: Check) -> None:
    """The losses with their gradient by each path: time, memory, and agreement with the oracle."""
    for rows in (16,) if check.quick else ROWS:
        sample = batch(rows, 1, check.device, rows)
        logits = 3 * torch.randn(rows, TASKS.width, generator=torch.Generator().manual_seed(1)).to(check.device)
        figures: dict[str, object] = {}
        found: dict[str, losses.Fidelity] = {}
        for path in ("torch", "triton") if check.cuda else ("torch",):
            run = partial(_fidelity, path, logits, sample.labels)
            with peak(check) as memory:
                taken = seconds(run, check, 3 if check.quick else 10)
            found[path] = run(0)
            figures[path] = f"{taken * 1e3:.3f} ms, {memory.gibibytes * 2**10:.0f} MiB"
        ok = True
        if rows <= 2048:  # all pairs at once do not fit beyond
            leaf = logits.double().requires_grad_()
            check.wait()
            begin = time.perf_counter()
            want = reference.task_losses(leaf, sample.labels, TASKS, LossConfig())
            (slope,) = torch.autograd.grad(want.sum(), leaf)
            check.wait()
            figures["eager, all pairs, f64"] = f"{(time.perf_counter() - begin) * 1e3:.1f} ms"
            for path, got in found.items():
                error = max(float((got.losses - want.detach()).abs().max()), float((got.gradient - slope).abs().max()))
                figures[f"{path}'s error"] = f"{error:.0e}"
                ok &= error < 1e-4
        check.say("fidelity loss", f"batch {rows}", figures, ok)


def _fidelity(path: str, logits: Tensor, labels: Tensor, _: int) -> losses.Fidelity:
    config = LossConfig.model_validate({"kernel": path})
    return losses.fidelity(logits, labels, TASKS, config, World())


def stages(check: Check) -> None:
    """DeepSpeed's stages on one rank: parameters and lambda after three steps as torch's own optimiser has them, and
    what a step takes."""
    os.environ.update(RANK="0", WORLD_SIZE="1", LOCAL_RANK="0", MASTER_ADDR="127.0.0.1", MASTER_PORT="29511")
    if not check.cuda:
        os.environ["DS_ACCELERATOR"] = "cpu"
    torch.distributed.init_process_group("nccl" if check.cuda else "gloo")
    try:
        _stages(check)
    finally:
        torch.distributed.destroy_process_group()


def _stages(check: Check) -> None:
    from blades_dist.training.engine import DeepSpeedEngine

    # A layer before BatchNorm has almost no gradient of its own: with other kernels each time, or a small epsilon,
    # AdamW makes whole steps of what rounding leaves there.
    torch.use_deterministic_algorithms(True)
    rows, names = 16, ("exact, reuse", "alternating")
    samples = [batch(rows, 64, check.device, seed) for seed in range(6)]
    for stage in (0, 1):
        train = training(lr=1e-3, adam_eps=1e-3, zero_stage=stage)
        for name in names:
            ends = []
            for kind in (PlainEngine, DeepSpeedEngine):
                model = check.model(TINY)
                more = () if kind is PlainEngine else (rows,)
                engine = kind(model, train, World(), *more)
                step = step_of(engine, ROUTES[name][0], train)
                for i in range(3):
                    step.run(i, 1e-3, [samples[2 * i]], samples[2 * i + 1])
                ends.append((flat(list(engine.module.parameters())), step.weights.value.clone()))
            errors = [float((a - b).abs().max()) for a, b in zip(*ends, strict=True)]
            figures = {"parameters": f"{errors[0]:.1e}", "weights": f"{errors[1]:.1e}"}
            what = f"{name}: difference from torch's optimiser"
            check.say(f"DeepSpeed stage {stage}", what, figures, max(errors) < 1e-5)
    torch.use_deterministic_algorithms(False)
    for stage in () if check.quick else (0, 1):
        train = training(lr=LR, zero_stage=stage)
        with peak(check) as memory:
            engine = DeepSpeedEngine(check.model(precision="bf16"), train, World(), 48)
            samples = [batch(48, check.size, check.device, seed) for seed in (0, 1)]
            taken = seconds(taker(step_of(engine, ROUTES["exact, reuse"][0], train), *samples), check, 5)
        cost: dict[str, object] = {"batch": 48, "graphs": "no", "ms": f"{taken * 1e3:.1f}"}
        cost |= {"images/s": round(48 / taken), "peak GiB": f"{memory.gibibytes:.2f}"}
        check.say("cost", f"exact, reuse; DeepSpeed stage {stage}", cost)
