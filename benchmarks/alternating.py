"""How near the cheaper hypergradients are to the exact one, over 50 steps of training on simulated photographs.

python benchmarks/alternating.py                        makes and ingests 1,200 photographs first (a local Ray)
python benchmarks/alternating.py --shards DIR           on shards that are there, e.g. runs/demo/shards/photographs
python benchmarks/alternating.py --write                also writes benchmarks/results/alternating.md

The demo's model trains by the exact route. Before each step every route is asked what it would find on the same
batches at the same parameters; none of them leaves a trace.
"""

import argparse
import platform
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor

from blades_dist.bilevel.build import build_weights
from blades_dist.config import IngestConfig, PretrainConfig, RayConfig
from blades_dist.data.read import read_split
from blades_dist.distributed import World
from blades_dist.models.joint import build_joint_model
from blades_dist.settings import load
from blades_dist.tasks import TaskSet, task_set
from blades_dist.training.sample import Sample, prepare
from blades_dist.training.step import BilevelStep
from blades_dist.training.torch_engine import PlainEngine

ROOT = Path(__file__).parents[1]
STEPS = 50
ROUTES: dict[str, dict[str, object]] = {
    "exact": {},
    "alternating": {"route": "alternating"},
    "finite_difference, epsilon 0.01": {"route": "finite_difference"},
    "finite_difference, epsilon 0.001": {"route": "finite_difference", "epsilon": 1e-3},
    "exact, adamw look-ahead": {"lookahead": "adamw"},
    "alternating, adamw look-ahead": {"route": "alternating", "lookahead": "adamw"},
}
COMPARED = {name: "exact, adamw look-ahead" if "adamw" in name else "exact" for name in ROUTES}


@contextmanager
def shards(given: Path | None) -> Iterator[Path]:
    if given is not None:
        yield given
        return
    from blades_dist.data.ingest import ingest
    from blades_dist.raylocal import cluster
    from blades_dist.simulate.dataset import write_photographs

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_photographs(folder / "photographs", 1200, seed=7, size=128)
        with cluster(RayConfig(num_cpus=2)):
            ingest(
                IngestConfig(
                    source=folder / "photographs",
                    output=folder / "shards",
                    min_face_px=48,
                    splits={"train": 0.7, "val": 0.3},
                )
            )
        yield folder / "shards"


def batches(folder: Path, split: str, which: int, config: PretrainConfig, tasks: TaskSet) -> Iterator[Sample]:
    """Manipulated batches without end, in stored order."""
    number = 0
    while True:
        for batch in read_split(folder, split, config.data.image_size, batch_size=config.train.batch_size):
            if len(batch["ids"]) < config.train.batch_size:
                continue
            images, landmarks, labels = (torch.from_numpy(batch[key]) for key in ("images", "landmarks", "labels"))
            seed = (config.train.seed, which, number)
            yield prepare(images, landmarks, labels, batch["ids"], tasks, config.manipulate, seed, World())
            number += 1


def compare(folder: Path, lr: float) -> dict[str, Tensor]:
    """Route to its hypergradients (STEPS, K) along one training run at learning rate ``lr``."""
    config = load(PretrainConfig, "pretrain", ROOT / "jobs" / "configs" / "demo.yaml", [f"train.lr={lr}"])
    tasks, world, train = task_set(), World(), config.train
    engine = PlainEngine(build_joint_model(config.model, tasks, train.seed).train(), train, world)

    def step_of(values: dict[str, object]) -> BilevelStep:
        bilevel = config.bilevel.model_copy(update={"every": 1, **values})
        return BilevelStep(engine, tasks, build_weights(bilevel, tasks), config.loss, bilevel, train, world)

    steps = {name: step_of(values) for name, values in ROUTES.items()}
    for step in steps.values():
        step.weights = steps["exact"].weights
    found: dict[str, list[Tensor]] = {name: [] for name in ROUTES}
    streams = [batches(folder, split, which, config, tasks) for which, split in enumerate(("train", "val"))]
    for number in range(STEPS):
        batch, val = (next(stream) for stream in streams)
        for name, step in steps.items():
            hypergradient = step.probe(lr, [batch], val).hypergradient
            assert hypergradient is not None
            found[name].append(hypergradient.double())
        steps["exact"].run(number, lr, [batch], val)
    return {name: torch.stack(values) for name, values in found.items()}


def table(folder: Path) -> str:
    lines = [
        f"# Cheaper hypergradients against the exact one, {STEPS} steps",
        "",
        "The demo's model (resnet_tiny with high-pass, batch 48, fp32) from its first step on, simulated photographs. "
        "Cosine and relative error, norm(h - exact) / norm(exact), of the K-vector at each step: median (least, "
        "greatest). Each is compared with the exact route of its own look-ahead.",
        "",
        f"- device: {platform.machine()} CPU; Python {platform.python_version()}, torch {torch.__version__}",
        "",
        "| lr | route | cosine with exact | relative error |",
        "|---|---|---|---|",
    ]
    for lr in (2e-3, 1e-4, 1e-5):
        found = compare(folder, lr)
        for name, values in found.items():
            exact = found[COMPARED[name]]
            if name in COMPARED.values():
                continue
            cosine = torch.cosine_similarity(values, exact, dim=1)
            error = (values - exact).norm(dim=1) / exact.norm(dim=1)
            lines.append(f"| {lr:g} | {name} | {_spread(cosine, '.4f')} | {_spread(error, '.1e')} |")
    return "\n".join(lines) + "\n"


def _spread(values: Tensor, form: str) -> str:
    return f"{float(values.median()):{form}} ({float(values.min()):{form}}, {float(values.max()):{form}})"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shards", type=Path)
    parser.add_argument("--write", action="store_true")
    options = parser.parse_args()
    with shards(options.shards) as folder:
        text = table(folder)
    print(text)
    if options.write:
        (Path(__file__).parent / "results" / "alternating.md").write_text(text)


if __name__ == "__main__":
    main()
