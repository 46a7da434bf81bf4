"""A pretraining run that is disturbed on purpose, and what must come out of it all the same."""

import json
import random
import re
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors.torch import load_file
from torch import Tensor

from blades_dist.config import IngestConfig
from blades_dist.data.ingest import ingest
from blades_dist.simulate.dataset import write_photographs
from blades_dist.testing.hosts import Hosts, Job, wait_until
from blades_dist.training import checkpoint_io, sample

KINDS = ("worker", "node", "trainer", "driver", "while writing", "cut file", "flipped bit")
DAMAGES = ("cut file", "flipped bit")


def make_shards(folder: Path, photographs: int = 80) -> Path:
    """A small shard set of simulated photographs; needs a Ray connection."""
    write_photographs(folder / "photographs", photographs, seed=3, size=64)
    splits = {"train": 0.6, "val": 0.4}
    output = folder / "shards"
    ingest(IngestConfig(source=folder / "photographs", output=output, splits=splits, min_face_px=32, rows_per_group=8))
    return output


def settings(shards: Path, runs: Path, name: str, steps: int, every: int, **values: object) -> dict[str, object]:
    """Overrides of ``jobs/pretrain.py`` for a tiny run of two workers that write down what they see."""
    return {
        "name": name,
        "storage": runs,
        "data.shards": shards,
        "data.image_size": 64,
        "data.task_cpus": 0.2,
        "model.image.preset": "resnet_tiny",
        "model.text": "{layers: 1, width: 32, heads: 2}",
        "model.embed_dim": 32,
        "train.workers": 2,
        "train.cpus_per_worker": 0.6,
        "train.threads_per_worker": 1,
        "train.batch_size": 6,
        "train.max_steps": steps,
        "train.epochs": 1000,
        "train.checkpoint_every": every,
        "train.log_every": 1,
        "train.lr": 1e-3,
        "train.record_samples": "true",
        "train.max_failures": -1,
        "bilevel.lr": 1e-2,
        **values,
    }


@dataclass(frozen=True)
class Recovery:
    """``reached`` steps were done when it happened, ``intact`` were in the newest intact checkpoint."""

    kind: str
    reached: int
    intact: int
    resumed: int
    seconds: float


class Disturbed:
    """A run in the hands of somebody who breaks things."""

    def __init__(self, cluster: Hosts, values: dict[str, object], log: Path, seed: int) -> None:
        self.cluster, self.values, self.log = cluster, values, log
        self.folder = Path(str(values["storage"])) / str(values["name"])
        self.dice = random.Random(seed)
        self.job = Job(cluster, values, log)

    @property
    def reached(self) -> int:
        """Steps that are done: a line is written before its step."""
        file = self.folder / sample.FOLDER / "rank-00000.jsonl"
        lines = file.read_text().splitlines() if file.is_file() else []
        return int(json.loads(lines[-1])["step"]) if lines and lines[-1].endswith("}") else 0

    @property
    def resumptions(self) -> list[int]:
        return [int(step) for step in re.findall(r"resumed at step (\d+)/", self.job.output)]

    def disturb(self, kind: str, step: int, **changes: object) -> Recovery:
        """Waits for ``step`` and a checkpoint to fall back on, does it, and waits until training has resumed.

        ``changes`` are overrides of the next driver; kind ``driver`` only.
        """
        least = 2 if kind in DAMAGES else 1
        self._wait(lambda: self.reached >= step and len(self._saved()) >= least, f"step {step}")
        if kind == "while writing":
            self._wait(lambda: any(self._store.glob(".writing-*")), "a checkpoint being written")
        before, reached = len(self.resumptions), self.reached
        begin = time.monotonic()
        intact = self._do(kind, changes)
        self._wait(lambda: len(self.resumptions) > before, f"resumed after {kind}")
        resumed = self.resumptions[-1]
        self._wait(lambda: self.reached >= resumed, "training again")
        return Recovery(kind, max(reached, resumed), intact, resumed, time.monotonic() - begin)

    def _do(self, kind: str, changes: dict[str, object]) -> int:
        if kind in DAMAGES:
            self._damage(kind)
        intact = checkpoint_io.step_of(self._saved()[1 if kind in DAMAGES else 0])
        if kind == "driver":
            self.job.kill()
            self.values |= changes
            self.job = Job(self.cluster, self.values, self.log)
        elif kind == "trainer":
            for process in self.cluster.processes("ray::TrainController"):
                process.kill()
        else:
            worker = self.dice.choice(self.cluster.processes("ray::RayTrainWorker"))
            node = self.cluster.node_of(worker)
            if kind == "node" and node is not None:
                self.cluster.kill(node)
                self.cluster.add()
            else:
                worker.kill()
        return intact

    def _damage(self, kind: str) -> None:
        file = self.dice.choice(sorted(self._saved()[0].iterdir()))
        data = bytearray(file.read_bytes())
        place = self.dice.randrange(len(data))
        if kind == "cut file":
            del data[place:]
        else:
            data[place] ^= 1 << self.dice.randrange(8)
        file.write_bytes(data)

    @property
    def _store(self) -> Path:
        return self.folder / checkpoint_io.FOLDER

    def _saved(self) -> list[Path]:
        return checkpoint_io.saved(self._store)

    def _wait(self, condition: Any, what: str) -> None:
        def alive() -> bool:
            assert self.job.process.poll() is None, f"ended before: {what}\n{self.job.output[-6000:]}"
            return bool(condition())

        wait_until(alive, what, every=0.005)


@dataclass(frozen=True)
class End:
    """What two runs are compared by: lambda's trajectory, the encoder, and the photographs of every step."""

    history: list[Any]
    tensors: dict[str, Tensor]
    sequence: list[dict[str, Any]]

    @staticmethod
    def of(folder: Path) -> "End":
        weights = json.loads((folder / "weights.json").read_text())
        return End(weights["history"], load_file(folder / "encoder" / "encoder.safetensors"), sample.sequence(folder))

    def same_bits(self, other: "End") -> bool:
        names = self.tensors.keys() == other.tensors.keys()
        return names and all(bool((self.tensors[name] == other.tensors[name]).all()) for name in self.tensors)

    def furthest(self, other: "End") -> float:
        """The largest difference of any task weight at any step."""
        pairs = zip(self.history, other.history, strict=True)
        return max(abs(a - b) for (_, own), (_, others) in pairs for a, b in zip(own, others, strict=True))


def plan(kinds: Sequence[str], steps: int, every: int, seed: int) -> list[tuple[str, int]]:
    """Kinds at increasing random steps, after the second checkpoint."""
    first = 2 * every + 1
    at = sorted(random.Random(seed).sample(range(first, steps - every), len(kinds)))
    return list(zip(kinds, at, strict=True))
