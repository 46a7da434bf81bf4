"""Small joint models and batches of random photographs for tests; importable by spawned ranks."""

from typing import Any

import torch
from torch import Tensor

from blades_dist.bilevel.build import build_weights
from blades_dist.config import BilevelConfig, LossConfig, ManipulateConfig, ModelConfig, TrainConfig
from blades_dist.distributed import World
from blades_dist.models.joint import JointModel, build_joint_model
from blades_dist.tasks import TAGS, TASKS, task_set
from blades_dist.training.sample import Sample, prepare
from blades_dist.training.step import BilevelStep

SIDE = 64
LANDMARKS = torch.tensor([[20.0, 25], [44, 25], [32, 38], [24, 48], [40, 48]])
LR = 1e-3


def small_config(**image: Any) -> ModelConfig:
    values = {
        "image": {"preset": "resnet_tiny", **image},
        "text": {"layers": 1, "width": 32, "heads": 2},
        "embed_dim": 32,
    }
    return ModelConfig.model_validate(values)


def small_model(world: World | None = None, **image: Any) -> JointModel:
    return build_joint_model(small_config(**image), task_set(), 0, world)


def random_labels(rows: int, generator: torch.Generator) -> Tensor:
    """(rows, len(TAGS)); every tag is absent now and then."""
    widths = {task.tag: len(task.classes) for task in TASKS}
    return torch.stack([torch.randint(-1, widths[tag], (rows,), generator=generator) for tag in TAGS], dim=1)


def sample(step: int, stream: int, rows: int, world: World, dtype: torch.dtype) -> Sample:
    """This rank's part of a global batch of ``rows`` random photographs."""
    generator = torch.Generator().manual_seed(2 * step + stream)
    images = torch.randint(0, 256, (rows, 3, SIDE, SIDE), generator=generator, dtype=torch.uint8)
    labels = random_labels(rows, generator)
    part = slice(world.rank * rows // world.size, (world.rank + 1) * rows // world.size)
    landmarks = LANDMARKS.expand(rows, 5, 2)
    found = prepare(
        images[part], landmarks[part], labels[part], [], task_set(), ManipulateConfig(), (0, stream, step), world
    )
    return Sample(found.images.to(dtype), found.labels, [])


def build_step(engine: Any, world: World, train: TrainConfig | None = None, **bilevel: Any) -> BilevelStep:
    config = BilevelConfig(**{"lr": 1e-2, **bilevel})
    tasks = task_set()
    weights = build_weights(config, tasks)
    return BilevelStep(engine, tasks, weights, LossConfig(), config, train or train_config(), world)


def train_config(**values: Any) -> TrainConfig:
    return TrainConfig(**{"lr": LR, **values})


def take_steps(step: BilevelStep, world: World, first: int, last: int, rows: int, dtype: torch.dtype) -> dict[str, Any]:
    """Takes steps first..last - 1 and returns plain values of where that leads."""
    micro, lr = step.train.accumulate, step.train.lr
    for i in range(first, last):
        val = sample(i, 1, step.bilevel.val_batch or rows, world, dtype) if step.wants_validation(i) else None
        train = [sample(i * micro + j, 0, rows, world, dtype) for j in range(micro)]
        result = step.run(i, lr, train, val)
    module = step.engine.module
    return {
        "losses": result.train_losses.double().numpy(),
        "lambda": step.weights.value.numpy().copy(),
        "norm": result.gradient_norm,
        "parameters": torch.cat([value.detach().double().flatten() for value in module.parameters()]).numpy(),
        "buffers": torch.cat([value.double().flatten() for value in module.buffers()]).numpy(),
    }


def plain_steps(
    rows: int, steps: int, double: bool, train: dict[str, Any] | None = None, **bilevel: Any
) -> dict[str, Any]:
    """``steps`` bi-level steps of the small model on the plain engine, over whatever ranks there are."""
    from blades_dist.training.torch_engine import PlainEngine

    world, dtype = World.current(), torch.float64 if double else torch.float32
    config = train_config(**(train or {}))
    engine = PlainEngine(small_model(world).to(dtype).train(), config, world)
    return take_steps(build_step(engine, world, config, **bilevel), world, 0, steps, rows, dtype)
