"""What the pretext tasks have learned, on held-out photographs, and how a finished run says so.

Statistics and figures are those of ``evaluate``, which lies below training and knows nothing of it.
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from blades_dist.config import ManipulateConfig
from blades_dist.data.read import FaceBatch
from blades_dist.distributed import World
from blades_dist.evaluate.bootstrap import bootstrap_metrics
from blades_dist.evaluate.ranking import auc
from blades_dist.evaluate.rates import wilson_bounds
from blades_dist.losses.reference import coarse_items, expected_level, label_columns
from blades_dist.tasks import ABSENT, Task, TaskSet
from blades_dist.training.progress import SPEED
from blades_dist.training.sample import prepare

STREAM = 2  # of the manipulation seed: 0 is training, 1 the outer objective


def validate(
    model: nn.Module, batches: Iterator[FaceBatch], tasks: TaskSet, config: ManipulateConfig, seed: int
) -> dict[str, Any]:
    """Read-outs of ``model`` in evaluation mode on ``batches``, with 95% intervals, as plain JSON values.

    ``coarse_auc``: photographic against manipulated; ``coarse_loss``: that task's mean fidelity loss. ``tasks``: for
    each EXIF task the accuracy, beside that of the commonest class. An ordinal task predicts its expected level,
    rounded: its loss only ranks.
    """
    logits, labels = _read_out(model, batches, tasks, config, seed)
    report: dict[str, Any] = {"tasks": {}}
    for task, part in zip(tasks.tasks, label_columns(tasks), strict=True):
        own, target = logits[:, tasks.columns[task.name]], labels[:, part]
        if task.kind == "coarse":
            score = (own[:, 0] - own[:, 1]).double().numpy()
            manipulated = target[:, 0].numpy() == 1
            area = bootstrap_metrics((auc,), score[~manipulated], [score[manipulated]], seed=seed)[0].estimate(0)
            report["coarse_loss"] = float(coarse_items(own, target[:, 0]).mean())
            report["coarse_auc"] = {"value": area.value, "low": area.low, "high": area.high, "n": len(score)}
        elif task.kind != "fine":
            report["tasks"][task.name] = _accuracy(task, own, target[:, 0])
    return report


def _read_out(
    model: nn.Module, batches: Iterator[FaceBatch], tasks: TaskSet, config: ManipulateConfig, seed: int
) -> tuple[Tensor, Tensor]:
    device = next(model.parameters()).device
    training = model.training
    model.eval()
    logits, labels = [], []
    with torch.no_grad():
        for i, batch in enumerate(batches):
            images, landmarks, known = (
                torch.from_numpy(array).to(device) for array in (batch["images"], batch["landmarks"], batch["labels"])
            )
            sample = prepare(images, landmarks, known, batch["ids"], tasks, config, (seed, STREAM, i), World())
            logits.append(model(sample.images).float().cpu())
            labels.append(sample.labels.cpu())
    model.train(training)
    return torch.cat(logits), torch.cat(labels)


def _accuracy(task: Task, logits: Tensor, labels: Tensor) -> dict[str, Any]:
    present = labels != ABSENT
    logits, labels = logits[present], labels[present]
    if len(labels) == 0:
        return {"accuracy": None, "low": None, "high": None, "majority": None, "n": 0}
    guess = expected_level(logits).round().long() - 1 if task.kind == "ordinal" else logits.argmax(-1)
    right = int((guess == labels).sum())
    low, high = wilson_bounds(right, len(labels))
    majority = float(np.bincount(labels.numpy()).max() / len(labels))
    return {"accuracy": right / len(labels), "low": low, "high": high, "majority": majority, "n": len(labels)}


def summary(folder: Path) -> str:
    """The read-outs of a run folder: what the tasks have learned against guessing, the task weights, the speed."""
    report = json.loads((folder / "validation.json").read_text())
    weights = json.loads((folder / "weights.json").read_text())
    auc = report["coarse_auc"]
    lines = [
        f"coarse manipulation AUC {auc['value']:.3f} [{auc['low']:.3f}, {auc['high']:.3f}] "
        f"on {auc['n']} validation photographs",
        f"{'task':18}{'accuracy':>10}{'95% interval':>18}{'majority':>10}{'n':>7}{'lambda':>9}",
    ]
    final = dict(zip(weights["names"], weights["history"][-1][1], strict=True))
    for name, row in report["tasks"].items():
        if row["n"]:
            interval = f"[{row['low']:.3f}, {row['high']:.3f}]"
            lines.append(
                f"{name:18}{row['accuracy']:>10.3f}{interval:>18}{row['majority']:>10.3f}{row['n']:>7}{final[name]:>9.3f}"
            )
    for name in ("face_coarse", "face_fine"):
        lines.append(f"{name:18}{'':45}{final[name]:>9.3f}")
    if (folder / SPEED).is_file():
        speed = json.loads((folder / SPEED).read_text())
        lines.append(
            f"speed since the last start: {speed['images_per_second']:.0f} images/s, "
            f"{speed['data_wait_share']:.1%} of the time waiting for data"
        )
    return "\n".join([*lines, f"run folder: {folder}", f"encoder: {folder / 'encoder'}"])


def plot_trajectories(folder: Path) -> None:
    """``weights.png``: every task's weight over the steps."""
    # Here: a worker, which draws nothing, need not load it.
    import matplotlib

    from blades_dist.evaluate.plots import plot_weights

    matplotlib.use("Agg")
    weights = json.loads((folder / "weights.json").read_text())
    plot_weights(weights["history"], weights["names"]).savefig(folder / "weights.png", dpi=120)
