"""What this machine does: parts of a step alone, collectives alone, and whole steps of several gloo workers.

The first two calibrate the model, the third is what it predicts. Every function runs in all workers of a pool.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from scaling_model import Collective, Link
from scaling_work import LR, TASKS, Copies, batch, build_step
from torch import Tensor
from torch.func import functional_call

from blades_dist.bilevel.hypergradient import Columns, combine, pull_back, push_forward
from blades_dist.bilevel.lookahead import Params, sgd_lookahead
from blades_dist.config import LossConfig, ModelConfig, TrainConfig
from blades_dist.distributed import World
from blades_dist.losses.fidelity import fidelity
from blades_dist.models.dual import forget, remember
from blades_dist.models.joint import build_joint_model
from blades_dist.training.determinism import keep_freed_memory
from blades_dist.training.torch_engine import PlainEngine

# How often a step does each part; parts are timed alone. `sum`: packing a gradient for its collective.
COUNTS: dict[str, dict[str, int]] = {
    "plain": {"forward": 1, "backward": 1, "sum": 1, "optimiser": 1},
    "exact": {"forward": 2, "backward": 3, "sum": 3, "look-ahead": 1, "forward mode": 1, "optimiser": 1},
    "exact, sync local": {"forward": 2, "backward": 3, "sum": 3, "look-ahead": 1, "forward mode": 1, "optimiser": 1},
    "alternating": {"forward": 1, "dual forward": 1, "backward": 2, "sum": 2, "optimiser": 1},
}
SETTINGS: dict[str, dict[str, object]] = {
    "plain": {"weighting": "equal"},
    "exact": {},
    "exact, sync local": {"sync": "local"},
    "alternating": {"route": "alternating"},
}
SIZES = (256, 4096, 65536, 2**20, 2**23, 2**27)  # bytes a collective is timed with


@dataclass(frozen=True)
class Case:
    """A model that a few gloo workers can train on this machine."""

    name: str
    model: dict[str, Any]
    pixels: int
    rows: int

    @property
    def config(self) -> ModelConfig:
        return ModelConfig.model_validate(self.model)


def part_times(case: Case, repeats: int) -> dict[str, float]:
    """Median seconds of each part, without any message: the other workers are taken to hold what this one holds.

    They run at the same time, so cores, caches and memory are shared as in a step.
    """
    keep_freed_memory()
    world: World = Copies(dist.get_world_size(), dist.get_rank()) if dist.get_world_size() > 1 else World()
    model = build_joint_model(case.config, TASKS, 0, world).train()
    engine = PlainEngine(model, TrainConfig(lr=LR), world)
    params: Params = {name: value for name, value in model.named_parameters() if value.requires_grad}
    sample, columns = batch(case.rows, case.pixels, dist.get_rank()), Columns.of(TASKS)
    times: dict[str, list[float]] = {}

    def timed(name: str, work: Callable[[], Any]) -> Any:
        begin = time.perf_counter()
        found = work()
        times.setdefault(name, []).append(time.perf_counter() - begin)
        return found

    def forward() -> tuple[Tensor, Tensor]:
        logits = model(sample.images)
        return logits, fidelity(logits, sample.labels, TASKS, LossConfig(), world).gradient

    def ahead(point: Params) -> Tensor:
        return functional_call(model, point, (sample.images,))

    dist.barrier()
    for _ in range(repeats + 1):
        with remember(model):
            logits, cotangent = timed("forward", forward)
        share = timed("backward", partial(pull_back, logits, cotangent, params))
        total = timed("sum", partial(combine, share, world, "exact"))
        timed("look-ahead", partial(sgd_lookahead, params, total, LR, 1e-3))
        still = {name: value.detach() for name, value in params.items()}
        with torch.no_grad():
            _, tangent = timed("forward mode", partial(push_forward, ahead, still, total))
        columns.sum(cotangent * tangent)
        forget(model)
        with remember(model.text):
            model(sample.images)
        logits, _ = timed("dual forward", partial(engine.forward, sample.images, total))
        forget(model)
        engine.backward(logits, cotangent)
        engine.gradient()
        timed("optimiser", partial(engine.step, LR))
    return {name: float(np.median(values[1:])) for name, values in times.items()}


def collective_times(repeats: int) -> dict[tuple[str, int], float]:
    """Median seconds of all-reduce and all-gather by kind and size in bytes."""
    world, found = World.current(), {}
    for size in SIZES:
        value = torch.zeros(size // 4)
        for kind, call in (("all_reduce", world.sum), ("all_gather", world.gather)):
            if kind == "all_gather" and size > 2**23:
                continue  # nothing that is gathered is that large
            times = []
            for _ in range(max(3, repeats if size < 2**23 else repeats // 10)):
                dist.barrier()
                begin = time.perf_counter()
                call(value)
                times.append(time.perf_counter() - begin)
            found[kind, size] = float(np.median(times[1:]))
    return found


def step_times(case: Case, route: str, steps: int) -> list[float]:
    """Seconds of each of ``steps`` real steps after one that is not counted, with real messages."""
    keep_freed_memory()
    world = World.current()
    model = build_joint_model(case.config, TASKS, 0, world).train()
    step = build_step(model, world, SETTINGS[route])
    train, val = batch(case.rows, case.pixels, world.rank), batch(case.rows, case.pixels, 100 + world.rank)
    times = []
    for number in range(steps + 1):
        dist.barrier()
        begin = time.perf_counter()
        step.run(number, LR, [train], val if step.wants_validation(number) else None)
        times.append(time.perf_counter() - begin)
    return times[1:]


def fitted(times: Mapping[tuple[str, int], float], kind: str) -> Link:
    """Latency and bandwidth by least squares on relative errors, neither below zero."""
    rows = [(size, seconds) for (of, size), seconds in times.items() if of == kind]
    return fit_line(np.array([size for size, _ in rows]), np.array([seconds for _, seconds in rows]))


def fit_line(sizes: np.ndarray, seconds: np.ndarray) -> Link:
    """The line latency + size / bandwidth that is nearest in relative error.

    Raises:
        ValueError: time does not grow with size.
    """
    design = np.stack([1 / seconds, sizes / seconds], axis=1)
    (latency, slope), *_ = np.linalg.lstsq(design, np.ones(len(sizes)), rcond=None)
    if latency < 0:
        latency, slope = 0.0, float(np.sum(sizes / seconds) / np.sum((sizes / seconds) ** 2))
    if slope <= 0:
        raise ValueError("the time of a collective does not grow with its size; measure on a quieter machine")
    return Link(float(latency), float(1 / slope))


def predicted(parts: Mapping[str, float], route: str) -> float:
    """Seconds of a step's own work from its parts."""
    return sum(count * parts[name] for name, count in COUNTS[route].items())


def waited(links: Mapping[str, Link], calls: Sequence[Collective]) -> float:
    """Seconds of a step's collectives on measured links, which hold what a call of this number of workers takes."""
    return sum(call.calls * (links[call.kind].latency + call.bytes / links[call.kind].bandwidth) for call in calls)
