"""What a step costs by route: time, the GPU's share of it, kernels, memory; and where its host waits for the GPU."""

import collections
import warnings
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path

import torch
from bilevel_step import Released
from torch import Tensor
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile

from blades_dist.config import ManipulateConfig
from blades_dist.distributed import World
from blades_dist.manipulate import draw, manipulate
from blades_dist.training.torch_engine import PlainEngine

from .problem import GRAPHS, LR, TINY, Check, Values, batch, peak, plain_step, seconds, step_of, taker, training

# Route to its settings and the share of the batch that the outer step looks at; the dearest to know first.
ROUTES: Mapping[str, tuple[Values, int]] = {
    "plain": ({"weighting": "equal"}, 1),
    "exact, reuse": ({"reuse_gradient": True}, 1),
    "alternating": ({"route": "alternating"}, 1),
    "exact, reuse, val_batch a quarter": ({"reuse_gradient": True}, 4),
    "exact": ({}, 1),
    "exact, reuse, every 4": ({"reuse_gradient": True, "every": 4}, 1),
    "alternating, every 4": ({"route": "alternating", "every": 4}, 1),
}
LARGE = ("plain", "exact, reuse", "exact, reuse, val_batch a quarter", "alternating", "exact")


def routes(check: Check) -> None:
    """Every route at batch 48 in bf16, as it is and from CUDA graphs; then the released code's way."""
    rows = 2 if check.quick else 48
    ways = (False, True) if GRAPHS and check.cuda else (False,)
    for name, (values, share) in ROUTES.items():
        for graphs in ways:
            _cost(check, name, values, rows, share, graphs)
    model = check.model(precision="bf16")
    released = Released(model, check.device)
    train, val = (batch(rows, check.size, check.device, seed) for seed in (0, 1))
    with peak(check) as memory:
        taken = seconds(lambda _: released.step(train, val), check, 1 if check.quick else 6)
    _say(check, "released code's way", rows, False, taken, memory.gibibytes, lambda: released.step(train, val))
    # A second opinion on precision: what the paper's preset takes.
    for precision in ("fp32", "tf32") if check.cuda else ():
        take = taker(plain_step(check, {}, precision), train, val)
        _say(check, f"exact in {precision}", rows, False, seconds(take, check, 4), 0.0, partial(take, 0))


def large(check: Check) -> None:
    """The main routes at a batch that fills the card."""
    rows = 4 if check.quick else 512
    for name in LARGE:
        values, share = ROUTES[name]
        try:
            _cost(check, name, values, rows, share, False, count=1 if check.quick else 3, warm=1)
        except torch.OutOfMemoryError:
            check.say("cost", name, {"batch": rows, "graphs": "no", "ms": "out of memory"})


def _cost(
    check: Check, name: str, values: Values, rows: int, share: int, graphs: bool, count: int = 6, warm: int = 3
) -> None:
    step = plain_step(check, values, graphs=graphs)
    train = batch(rows, check.size, check.device, 0)
    val = batch(max(1, rows // share), check.size, check.device, 1)
    take, every = taker(step, train, val), step.bilevel.every
    with peak(check) as memory:
        # A round of every-th steps at a time, so that each has its outer step.
        few = (1, 1) if check.quick else (count, warm)
        rounds = seconds(lambda i: [take(every * i + j) for j in range(every)], check, *few)
    _say(check, name, rows, graphs, rounds / every, memory.gibibytes, lambda: take(0))


def _say(
    check: Check, name: str, rows: int, graphs: bool, taken: float, gibibytes: float, again: Callable[[], None]
) -> None:
    figures: dict[str, object] = {"batch": rows, "graphs": "yes" if graphs else "no", "ms": f"{taken * 1e3:.1f}"}
    figures["images/s"] = round(rows / taken)
    if check.cuda:
        count, busy = kernels(again, check)
        figures |= {"GPU busy ms": f"{busy * 1e3:.1f}", "kernels": count, "peak GiB": f"{gibibytes:.2f}"}
    check.say("cost", name, figures)


def kernels(run: Callable[[], None], check: Check) -> tuple[int, float]:
    """Kernels and copies that the GPU did, and their seconds together."""
    with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as found:
        run()
        check.wait()
    kineto = found.profiler.kineto_results if found.profiler else None
    events = [] if kineto is None else [e for e in kineto.events() if e.device_type() == DeviceType.CUDA]
    return len(events), sum(event.duration_ns() for event in events) / 1e9


def waits(check: Check) -> None:
    """Where a step's host waits for the GPU, in torch's own count; on a CPU there is nothing to wait for."""
    if not check.cuda:
        return
    train = training(lr=LR)
    for name in ("plain", "exact", "exact, reuse", "alternating"):
        step = step_of(PlainEngine(check.model(TINY, "bf16"), train, World()), ROUTES[name][0], train)
        take = taker(step, *(batch(8, 64, check.device, seed) for seed in (0, 1)))
        for i in range(3):
            take(i)
        where = _waits(partial(take, 4))
        check.say("host waits a step", name, {"count": sum(where.values()), "where": dict(where)})
    marks = torch.tensor([[70.0, 90], [150, 90], [110, 130], [80, 170], [140, 170]]).expand(16, 5, 2)
    images = torch.rand(16, 3, 224, 224)
    decisions = draw(16, ManipulateConfig(), torch.Generator().manual_seed(0))
    there: list[Tensor] = []
    moved = (images.to(check.device), marks.to(check.device))
    count = sum(_waits(lambda: there.append(manipulate(*moved, decisions))).values())
    error = float((there[0].cpu() - manipulate(images, marks, decisions)).abs().max())
    figures = {"count": count, "found": f"{error:.1e}"}
    check.say("manipulations", "host waits; difference from the CPU", figures, error < 1e-5)


def _waits(run: Callable[[], None]) -> "collections.Counter[str]":
    torch.cuda.set_sync_debug_mode("warn")
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            run()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    return collections.Counter(
        f"{Path(w.filename).name}:{w.lineno}" for w in caught if "called a synchronizing" in str(w.message)
    )
