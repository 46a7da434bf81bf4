"""What a finished run has to say, in a few lines and one plot."""

import json
from pathlib import Path

import matplotlib

from blades_dist.evaluate.plots import plot_weights
from blades_dist.training.progress import SPEED


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
    matplotlib.use("Agg")
    weights = json.loads((folder / "weights.json").read_text())
    plot_weights(weights["history"], weights["names"]).savefig(folder / "weights.png", dpi=120)
