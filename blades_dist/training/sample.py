"""What a step trains on: photographs, partly manipulated, with their labels; and the log of which step saw which."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import IO, Any

import torch
from torch import Tensor

from blades_dist.config import ManipulateConfig
from blades_dist.distributed import World
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
    decisions = draw(world.size * len(images), config, generator).rows(rows).to(images.device)
    own = torch.stack([labels[:, TAGS.index(task.tag)] for task in tasks.tasks if task.tag is not None], dim=1)
    joined = torch.cat((own, decisions.labels), dim=1)
    return Sample(manipulate(images.float() / 255, landmarks.float(), decisions), joined, ids)


def _mix(seed: tuple[int, int, int]) -> int:
    """One 63-bit generator seed of three numbers; neighbouring batches land far apart."""
    value = 0
    for part in seed:
        value = (value * 6364136223846793005 + part + 1442695040888963407) % 2**64
    return value >> 1


FOLDER = "samples"  # in a run folder


class SampleLog:
    """A context manager around one JSON line a step and rank; with ``on`` false it does nothing.

    A line is written before the step that it is about, and is not taken back when a failure makes the step run again.
    """

    def __init__(self, run: Path, world: World, on: bool) -> None:
        self._file: IO[str] | None = None
        self._head = {"rank": world.rank, "world": world.size}
        if on:
            (run / FOLDER).mkdir(parents=True, exist_ok=True)
            self._file = (run / FOLDER / f"rank-{world.rank:05d}.jsonl").open("a", buffering=1)

    def write(self, step: int, train: Sequence[Sequence[str]], val: Sequence[str] | None) -> None:
        """``train`` are the ids of each micro-batch's rows of this rank, ``val`` those of the outer objective's."""
        if self._file:
            self._file.write(json.dumps({"step": step, **self._head, "train": train, "val": val}) + "\n")

    def __enter__(self) -> "SampleLog":
        return self

    def __exit__(self, *_: object) -> None:
        if self._file:
            self._file.close()


def sequence(run: Path) -> list[dict[str, Any]]:
    """What the steps that count saw, in order: ``step``, ``train`` (micro-batches of ids, over all ranks) and ``val``.

    Where a step ran several times its last run counts. Torn last lines of a killed worker are left out.

    Raises:
        ValueError: a rank's line of some step is missing.
    """
    lines: dict[tuple[int, int], dict[str, Any]] = {}
    for file in sorted((run / FOLDER).glob("rank-*.jsonl")):
        for text in file.read_text().splitlines():
            try:
                line = json.loads(text)
            except ValueError:
                continue
            lines[line["step"], line["rank"]] = line
    steps = []
    for step in sorted({step for step, _ in lines}):
        world = lines[step, 0]["world"] if (step, 0) in lines else 0
        ranks = [lines.get((step, rank)) for rank in range(world)]
        if not ranks or any(rank is None or rank["world"] != world for rank in ranks):
            raise ValueError(f"{run / FOLDER}: step {step} has not one line of each rank")
        whole = [rank for rank in ranks if rank is not None]
        train = [list(chain(*parts)) for parts in zip(*(rank["train"] for rank in whole), strict=True)]
        val = None if whole[0]["val"] is None else list(chain(*(rank["val"] for rank in whole)))
        steps.append({"step": step, "train": train, "val": val})
    return steps
