"""Which photographs each step saw: an audit of the order, written by every worker for itself."""

import json
from collections.abc import Sequence
from itertools import chain
from pathlib import Path
from typing import IO, Any

from blades_dist.bilevel.reduce import World

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
