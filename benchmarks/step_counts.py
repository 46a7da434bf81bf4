"""What a step asks of a GPU by route, counted on a CPU: kernels to start, bytes to move, values its host reads.

python benchmarks/step_counts.py            prints the table
python benchmarks/step_counts.py --write    also writes benchmarks/results/step_counts.md
python benchmarks/step_counts.py --quick    a tiny model: does it work

Counts, so other load does not matter. ``scaling_work.py`` says how operations are counted; a host read is a value of
a tensor that Python asks for (``tolist``, ``item``, ``float``, ``cpu``): on a GPU it waits there for what has started.
Copies to the GPU from memory that is not pinned wait too and are not seen here; ``benchmarks/gpu.sh`` measures both.
"""

import argparse
import collections
import platform
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import Any

import inputs
import torch
from scaling_model import Op
from scaling_work import LR, TASKS, batch, build_step, step_ops
from torch import Tensor
from torch.overrides import TorchFunctionMode

from blades_dist.config import ModelConfig
from blades_dist.distributed import World
from blades_dist.models.joint import build_joint_model
from blades_dist.training.torch_engine import PlainEngine

ROWS, PIXELS = 48, 224
ROUTES: Mapping[str, Mapping[str, object]] = {
    "plain (lambda fixed)": {"weighting": "equal"},
    "exact": {},
    "exact, reuse": {"reuse_gradient": True},
    "exact, reuse, adamw look-ahead": {"reuse_gradient": True, "lookahead": "adamw"},
    "alternating": {"route": "alternating"},
    "finite_difference": {"route": "finite_difference"},
}
TINY = {"image": {"preset": "resnet_tiny"}, "text": {"layers": 2, "width": 64, "heads": 2}, "embed_dim": 64}
READS = {Tensor.tolist, Tensor.item, Tensor.__float__, Tensor.__int__, Tensor.__bool__, Tensor.cpu, Tensor.numpy}


class Reads(TorchFunctionMode):
    """How often Python asks for a tensor's values, by the method that does."""

    def __init__(self, host: Iterable[Tensor]) -> None:
        super().__init__()
        self._host: list[Tensor] = []  # on the host everywhere; kept, so that no other takes their memory
        self._memory: set[int] = set()
        self._aside = False
        self.found: collections.Counter[str] = collections.Counter()
        self._keep(host)

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        tensors = [value for value in args if isinstance(value, Tensor)]
        host = bool(tensors) and all(value.untyped_storage().data_ptr() in self._memory for value in tensors)
        if func in READS and not self._aside and not host:
            self.found[func.__name__.strip("_")] += 1
        found = func(*args, **(kwargs or {}))
        if host or func is Tensor.cpu:  # what is computed from numbers that were read is the host's, too
            self._keep(value for value in (found if isinstance(found, tuple) else [found]) if isinstance(value, Tensor))
        return found

    def _keep(self, values: Iterable[Tensor]) -> None:
        for value in values:
            self._host.append(value)
            self._memory.add(value.untyped_storage().data_ptr())

    def aside(self, method: Callable[..., Any]) -> Callable[..., Any]:
        """The method without its reads: of what works on tensors that are the host's own."""

        def call(*args: Any, **kwargs: Any) -> Any:
            before, self._aside = self._aside, True
            try:
                return method(*args, **kwargs)
            finally:
                self._aside = before

        return call


def host_reads(settings: Mapping[str, object]) -> "collections.Counter[str]":
    """Of the second step of a route; the model's size does not matter to them."""
    model = build_joint_model(ModelConfig.model_validate(TINY), TASKS, 0).train()
    step = build_step(model, World(), settings)
    train, val = batch(2, 32, 0), batch(2, 32, 1)
    take = partial(step.run, lr=LR, train=[train], val=val if step.weights.learns else None)
    take(0)
    assert isinstance(step.engine, PlainEngine)
    counters = (state["step"] for state in step.engine.optimizer.state.values())
    reads = Reads(counters)
    for name in ("step", "observe", "snapshot"):  # lambda, its optimiser and its history
        setattr(step.weights, name, reads.aside(getattr(step.weights, name)))
    with reads:
        take(1)
    return reads.found


def line(name: str, ops: list[Op], reads: "collections.Counter[str]") -> str:
    """A row of the table."""
    flops, moved = (sum(op.at(ROWS)[i] for op in ops) for i in (0, 1))
    cells = [f"{sum(op.launches for op in ops):,}", f"{flops / 1e12:.2f}", f"{moved / 1e9:.0f}", str(reads.total())]
    return f"| {name} | {' | '.join(cells)} | {', '.join(f'{n} {of}' for of, n in sorted(reads.items()))} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a tiny model")
    parser.add_argument("--threads", type=int, default=1, help="of torch")
    parser.add_argument("--write", action="store_true", help="also write benchmarks/results/step_counts.md")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    config = ModelConfig.model_validate(TINY if options.quick else {})
    lines = [
        f"# A step's demands, batch {ROWS}, {PIXELS} pixels, bf16, one worker",
        "",
        "Counted operation by operation on the real model and step, on a CPU, as CUDA would do them: the optimiser on "
        "all parameters at once, the losses in one kernel. Bytes: read and written if nothing is fused. Host reads: "
        "values that Python waits for.",
        "",
        f"- Python {platform.python_version()}, torch {torch.__version__}",
        "",
        "| step | kernels | TFLOP | GB moved | host reads | of them |",
        "|---|---|---|---|---|---|",
    ]
    for name, settings in ROUTES.items():
        bf16 = True
        lines.append(line(name, step_ops(config, PIXELS, bf16, World(), settings), host_reads(settings)))
        print(lines[-1], flush=True)
    inputs.publish("\n".join(lines) + "\n", "step_counts", options.write)


if __name__ == "__main__":
    main()
