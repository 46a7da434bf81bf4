"""What the parts of the GPU check share: models, batches, steps, time taken, and the lines that make its table."""

import copy
import json
import statistics
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from blades_dist.arithmetic import set_precision
from blades_dist.bilevel.build import build_weights
from blades_dist.config import BilevelConfig, LossConfig, ModelConfig, Precision, TrainConfig
from blades_dist.distributed import World
from blades_dist.models.joint import JointModel, build_joint_model
from blades_dist.tasks import ABSENT, task_set
from blades_dist.training.sample import Sample
from blades_dist.training.step import BilevelStep, Engine
from blades_dist.training.torch_engine import PlainEngine

TASKS, LR = task_set(), 1e-5
TINY = {"image": {"preset": "resnet_tiny"}, "text": {"layers": 2, "width": 64, "heads": 2}, "embed_dim": 64}
SMALL = {"image": {"preset": "resnet_small"}, "text": {"layers": 4, "width": 128, "heads": 4}, "embed_dim": 128}
Values = Mapping[str, object]
# Keys that a version of the package may not have yet; what asks for them is left out then.
GRAPHS = "cuda_graphs" in TrainConfig.model_fields


@dataclass
class Check:
    """One run of the check: where it computes, how small, and where its lines go."""

    device: torch.device
    quick: bool
    out: Path | None
    failures: int = 0
    models: dict[tuple[str, str, torch.dtype], JointModel] = field(default_factory=dict)

    @property
    def cuda(self) -> bool:
        return self.device.type == "cuda"

    @property
    def size(self) -> int:
        """Pixels a side of the full-size problem."""
        return 64 if self.quick else 224

    def say(self, part: str, what: str, figures: Values, ok: bool = True) -> None:
        """A line of the table; one that is not ``ok`` makes the whole check fail."""
        self.failures += not ok
        line = {"part": part, "what": what, "ok": ok, "figures": dict(figures)}
        text = ", ".join(f"{name} {value}" for name, value in figures.items())
        print(f"{'' if ok else 'FAILED '}{part}, {what}: {text}", flush=True)
        if self.out is not None:
            with (self.out / "gpu.jsonl").open("a") as file:
                file.write(json.dumps(line, default=str) + "\n")

    def wait(self) -> None:
        if self.cuda:
            torch.cuda.synchronize(self.device)

    def model(
        self,
        values: Values | None = None,
        precision: Precision = "fp32",
        dtype: torch.dtype = torch.float32,
        device: torch.device | None = None,
    ) -> JointModel:
        """A fresh model of seed 0: the full size where ``values`` say nothing. Sets the process's precision too."""
        where = device or self.device
        config = ModelConfig.model_validate(dict(values or (TINY if self.quick else {})))
        key = (config.model_dump_json(), where.type, dtype)  # drawing 63 M numbers takes longer than copying them
        if key not in self.models:
            self.models[key] = build_joint_model(config, TASKS, 0).to(where, dtype).train()
        model = copy.deepcopy(self.models[key])
        set_precision(precision)
        model.autocast_dtype = torch.bfloat16 if precision == "bf16" else None
        return model


def batch(rows: int, size: int, device: torch.device, seed: int, dtype: torch.dtype = torch.float32) -> Sample:
    """Random pictures, and labels of which a fifth is absent."""
    generator = torch.Generator().manual_seed(seed)
    highs = [len(task.classes) for task in TASKS.tasks if task.tag is not None] + [2] * 4
    labels = torch.stack([torch.randint(0, high, (rows,), generator=generator) for high in highs], dim=1)
    labels[:, :-4][torch.rand(rows, len(highs) - 4, generator=generator) < 0.2] = ABSENT
    images = torch.rand(rows, 3, size, size, generator=generator)
    return Sample(images.to(device, dtype), labels.to(device), [])


def step_of(engine: Engine, values: Values, train: TrainConfig) -> BilevelStep:
    """The step that the job takes."""
    bilevel = BilevelConfig.model_validate(dict(values))
    return BilevelStep(engine, TASKS, build_weights(bilevel, TASKS), LossConfig(), bilevel, train, World())


def training(graphs: bool = False, **values: object) -> TrainConfig:
    """Training settings, from CUDA graphs or not."""
    return TrainConfig.model_validate(values | ({"cuda_graphs": "on" if graphs else "off"} if GRAPHS else {}))


def plain_step(check: Check, values: Values, precision: Precision = "bf16", graphs: bool = False) -> BilevelStep:
    """A step of the full-size model on torch's own optimiser, the process set as a run sets it."""
    torch.backends.cudnn.benchmark = check.cuda
    train = training(graphs, lr=LR)
    return step_of(PlainEngine(check.model(precision=precision), train, World()), values, train)


def taker(step: BilevelStep, train: Sample, val: Sample) -> Callable[[int], None]:
    """A function that takes the i-th step, with an outer step where its route has one."""

    def take(i: int) -> None:
        step.run(i, LR, [train], val if step.wants_validation(i) else None)

    return take


def seconds(take: Callable[[int], object], check: Check, count: int, warm: int = 3) -> float:
    """Median seconds of ``count`` steps after ``warm``."""
    times = []
    for i in range(warm + count):
        check.wait()
        begin = time.perf_counter()
        take(i)
        check.wait()
        times.append(time.perf_counter() - begin)
    return statistics.median(times[warm:])


@dataclass
class Memory:
    """Peak GiB that tensors took inside ``peak``; 0 on a CPU."""

    gibibytes: float = 0.0


@contextmanager
def peak(check: Check) -> Iterator[Memory]:
    """Measures the most memory that is allocated inside, with what was there before."""
    found = Memory()
    if check.cuda:
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(check.device)
    yield found
    if check.cuda:
        found.gibibytes = torch.cuda.max_memory_allocated(check.device) / 2**30


def flat(tensors: list[Tensor]) -> Tensor:
    return torch.cat([value.detach().flatten() for value in tensors])
