"""Are the numbers right: every route in every precision, features against the CPU's, and equal bits twice."""

import copy
import time
from collections.abc import Mapping

import torch
from torch import Tensor

from blades_dist.arithmetic import cuda, set_precision
from blades_dist.config import Precision
from blades_dist.distributed import World
from blades_dist.models.export import FrozenEncoder, freeze
from blades_dist.training.determinism import make_deterministic, prepare_environment
from blades_dist.training.torch_engine import PlainEngine

from .problem import SMALL, TASKS, TINY, Check, Values, batch, flat, step_of, training

ROUTES: Mapping[str, Values] = {
    "exact": {},
    "reuse": {"reuse_gradient": True},
    "reuse, adamw": {"reuse_gradient": True, "lookahead": "adamw"},
    "alternating": {"route": "alternating"},
    "difference": {"route": "finite_difference"},
}
# (dtype, precision, largest relative error that passes): the last is for exact and alternating, which are derivatives.
PRECISIONS: Mapping[str, tuple[torch.dtype, Precision, float]] = {
    "f64": (torch.float64, "fp32", 1e-9),
    "fp32": (torch.float32, "fp32", 5e-3),
    "tf32": (torch.float32, "tf32", 0.5),
    "bf16": (torch.float32, "bf16", 0.8),
}
# AdamW divides by the root of a small second moment at its first steps: rounding grows there.
SLACK = {"reuse, adamw": 10}
CLOSE = 1e-5  # of features on two devices


def parity(check: Check) -> None:
    """The outer step's K-vector on the device against float64 on the CPU; nothing may have moved by looking."""
    values, lr = TINY if check.quick else SMALL, 1e-2

    rows = 4 if check.quick else 16

    def found(device: torch.device, kind: str, route: Values) -> tuple[Tensor, bool]:
        dtype, precision, _ = PRECISIONS[kind]
        # AdamW's first step has no derivative to speak of at a small epsilon.
        train = training(lr=lr, adam_eps=1e-3)
        model = check.model(values, precision, dtype, device)
        step = step_of(PlainEngine(model, train, World()), route, train)
        before = [value.clone() for value in (*model.parameters(), *model.buffers())]
        got = step.probe(lr, [batch(rows, 64, device, 0, dtype)], batch(rows, 64, device, 1, dtype))
        after = (*model.parameters(), *model.buffers())
        value: Tensor = getattr(got, "value" if hasattr(got, "value") else "hypergradient")
        return value.double().cpu(), all(torch.equal(a, b) for a, b in zip(before, after, strict=True))

    cpu = torch.device("cpu")
    derivative, _ = found(cpu, "f64", {})
    for name, route in ROUTES.items():
        truth = derivative if name == "difference" else found(cpu, "f64", route)[0]
        figures, ok = {}, True
        for kind, (_, precision, bound) in PRECISIONS.items():
            if precision == "tf32" and not check.cuda:
                continue  # a CPU has none: it would be fp32 again
            value, still = found(check.device, kind, route)
            error = float((value - truth).norm() / truth.norm())
            ok &= still and error < max(bound * SLACK.get(name, 1), 0.1 if name == "difference" else 0.0)
            figures[kind] = f"{error:.1e} (cos {float(torch.cosine_similarity(value, truth, 0)):.5f})"
        check.say("error against f64", name, figures, ok)
    set_precision("fp32")


def features(check: Check) -> None:
    """On the device as on the CPU, alone as in company, whatever the process is set to; and how fast."""
    size = check.size
    torch.backends.cudnn.benchmark = True  # nor must this
    encoder = freeze(check.model(), TASKS, size, {})
    images = torch.randint(0, 256, (16, 3, size, size), dtype=torch.uint8)
    set_precision("tf32")  # must not matter to features
    moved = copy.deepcopy(encoder).to(check.device)
    together = moved.features(images).cpu()
    error = float((together - encoder.features(images)).abs().max())
    check.say("features", "largest difference from the CPU", {"found": f"{error:.1e}", "bound": CLOSE}, error < CLOSE)
    set_precision("fp32")
    again = moved.features(images).cpu()
    check.say("features", "equal bits with train.precision tf32 and fp32", {}, torch.equal(together, again))
    if check.cuda:  # on a CPU a detector gives faces one at a time instead
        alone = torch.cat([moved.features(part).cpu() for part in images.split(1)])
        other = moved.features(images.flip(0)).cpu().flip(0)
        check.say("features", "equal bits alone and in company", {}, torch.equal(alone, again))
        check.say("features", "equal bits at another place of the batch", {}, torch.equal(other, again))
    rows = 4 if check.quick else 256
    check.say("features", f"{rows} crops at a time", {"images/s": round(_rate(moved, rows, check))})


def _rate(encoder: FrozenEncoder, rows: int, check: Check) -> float:
    images = torch.randint(0, 256, (rows, 3, check.size, check.size), dtype=torch.uint8)
    encoder.features(images)
    check.wait()
    begin, count = time.perf_counter(), 0
    while time.perf_counter() - begin < (0.2 if check.quick else 2.0):
        encoder.features(images)
        check.wait()
        count += rows
    return count / (time.perf_counter() - begin)


def deterministic(check: Check) -> None:
    """Equal bits of two runs. Last in its process: the settings stay, and CUBLAS_WORKSPACE_CONFIG is read once."""
    prepare_environment()
    make_deterministic(cuda() if check.cuda else check.device)
    train = training(lr=1e-3)
    try:
        for name in ("reuse", "alternating"):
            ends = []
            for _ in range(2):
                engine = PlainEngine(check.model(TINY if check.quick else SMALL, "bf16"), train, World())
                step = step_of(engine, ROUTES[name], train)
                for i in range(3):
                    parts = (batch(16, 64, check.device, 2 * i + of) for of in (0, 1))
                    step.run(i, 1e-3, [next(parts)], next(parts))
                ends.append((flat(list(engine.module.parameters())), step.weights.value.clone()))
            same = [torch.equal(a, b) for a, b in zip(*ends, strict=True)]
            check.say("deterministic, bf16", name, {"parameters": same[0], "weights": same[1]}, all(same))
    finally:
        torch.use_deterministic_algorithms(False)
