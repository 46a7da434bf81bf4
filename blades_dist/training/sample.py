"""What a step trains on: photographs, partly manipulated, with their labels, on the model's device."""

from dataclasses import dataclass

import torch
from torch import Tensor

from blades_dist.bilevel.reduce import World
from blades_dist.config import ManipulateConfig
from blades_dist.manipulate import draw, manipulate
from blades_dist.tasks import TAGS, TaskSet


@dataclass(frozen=True)
class Sample:
    """A batch ready for the model: ``images`` (B, 3, S, S) float 0..1, ``labels`` (B, K - 1 + R), and its rows' ids."""

    images: Tensor
    labels: Tensor
    ids: list[str]


def prepare(
    images: Tensor,
    landmarks: Tensor,
    labels: Tensor,
    ids: list[str],
    tasks: TaskSet,
    config: ManipulateConfig,
    seed: tuple[int, int, int],
    world: World,
) -> Sample:
    """uint8 photographs to a manipulated, labelled batch on their device.

    ``labels`` (B, len(TAGS)) are the records' tags. The decisions depend on ``seed`` (run, stream, batch) and the
    row's place in the global batch, not on the number of workers.
    """
    generator = torch.Generator().manual_seed(_mix(seed))
    rows = slice(world.rank * len(images), (world.rank + 1) * len(images))
    decisions = draw(world.size * len(images), config, generator).rows(rows)
    own = labels[:, [TAGS.index(task.tag) for task in tasks.tasks if task.tag is not None]]
    joined = torch.cat((own, decisions.labels.to(own.device)), dim=1)
    return Sample(manipulate(images.float() / 255, landmarks.float(), decisions), joined, ids)


def _mix(seed: tuple[int, int, int]) -> int:
    """One 63-bit generator seed of three numbers; neighbouring batches land far apart."""
    value = 0
    for part in seed:
        value = (value * 6364136223846793005 + part + 1442695040888963407) % 2**64
    return value >> 1
