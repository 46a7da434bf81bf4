"""Why an AUC can lie far below one half: generated faces that are more alike than photographs are.

python benchmarks/real_spread.py --work SCRATCH            prints the table
python benchmarks/real_spread.py --work SCRATCH --write    also writes benchmarks/results/real_spread.md

SCRATCH is the folder of real_report.py, of which it needs the shards of the photographs with EXIF and of the matched
pair as whole pictures. First without any encoder: a Gaussian is fitted to one number a picture, on the photographs that
the mixtures were fitted to, and its likelihood ranks the matched pair as a mixture's does. Then untrained encoders of
several seeds, with a diagonal Gaussian on their features.
"""

import argparse
import os
import platform
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path

import cv2
import numpy as np
from device import cpu_name

SIDE = 128  # what the encoder sees
FITTED, REAL, GENERATED = "fitted", "photographs", "stylegan2"
Sets = dict[str, list[np.ndarray]]


def grey(pixels: np.ndarray) -> np.ndarray:
    small = cv2.resize(pixels, (SIDE, SIDE), interpolation=cv2.INTER_AREA)
    return cv2.cvtColor(small, cv2.COLOR_RGB2GRAY).astype(np.float64)


STATISTICS: dict[str, Callable[[np.ndarray], float]] = {
    "sharpness, log variance of the Laplacian": lambda pixels: float(np.log1p(cv2.Laplacian(grey(pixels), -1).var())),
    "brightness, mean grey level": lambda pixels: float(grey(pixels).mean()),
    "contrast, deviation of grey levels": lambda pixels: float(grey(pixels).std()),
}


def spread(sets: dict[str, np.ndarray]) -> str:
    """AUC of the likelihood under a diagonal Gaussian fitted to the first set, photographs above generated, with the
    variance of the other two about their own means in units of its; from features (n, D), averaged over D."""
    from blades_dist.config import MixtureConfig
    from blades_dist.evaluate.bootstrap import bootstrap_metrics
    from blades_dist.evaluate.ranking import auc
    from blades_dist.evaluate.table_formats import show
    from blades_dist.testing.toy_detector import fitted

    head = fitted(MixtureConfig(n_components=1, covariance_type="diag"), sets[FITTED])
    found = bootstrap_metrics([auc], head.score(sets[REAL]), [head.score(sets[GENERATED])], 2000)[0].estimate(0)
    unit = sets[FITTED].var(0)
    first, second = (float((sets[name].var(0) / unit).mean()) for name in (REAL, GENERATED))
    return f"{show(found)} | {first:.2f} | {second:.2f} |"


def read(work: Path) -> Sets:
    from blades_dist.evaluate.scoring import crops

    places = {FITTED: (work / "shards", "train"), REAL: (work / "whole" / "matched", "test")}
    places[GENERATED] = (work / "whole" / "fakes", "test")
    return {name: [pixels for _, pixels in crops(*place)] for name, place in places.items()}


def features(sets: Sets, seed: int) -> dict[str, np.ndarray]:
    """Of an untrained encoder: the demo's small towers."""
    from blades_dist.config import ModelConfig
    from blades_dist.detect.features import encode
    from blades_dist.models.export import freeze
    from blades_dist.models.joint import build_joint_model
    from blades_dist.tasks import task_set

    image, text = {"preset": "resnet_tiny", "highpass": 6.0}, {"layers": 2, "width": 64, "heads": 4}
    model = ModelConfig.model_validate({"image": image, "text": text, "embed_dim": 128})
    encoder = freeze(build_joint_model(model, task_set(), seed), task_set(), SIDE, {})
    return {name: encode(encoder, faces, 64) for name, faces in sets.items()}


def table(work: Path, seeds: int) -> str:
    sets = read(work)
    lines = ["# Generated faces more alike than photographs", "", (__doc__ or "").split("\n\n")[-1].strip(), ""]
    lines += [f"- device: {cpu_name()}, {os.cpu_count()} cores"]
    lines += [f"- Python {platform.python_version()}, torch {version('torch')}, OpenCV {cv2.__version__}"]
    counts = ", ".join(f"{len(faces)} {name}" for name, faces in sets.items())
    lines += [f"- n: {counts}", "", "AUC as everywhere, photographs above generated; spread: variance, 1 = fitted.", ""]
    lines += ["| likelihood of | AUC [95%] | spread of photographs | spread of stylegan2 |", "|---|---|---|---|"]
    found = {
        side: np.array([[of(pixels) for of in STATISTICS.values()] for pixels in faces]) for side, faces in sets.items()
    }
    for i, name in enumerate(STATISTICS):
        lines.append(f"| {name} | {spread({side: own[:, [i]] for side, own in found.items()})}")
    lines.append(f"| all three | {spread(found)}")
    for seed in range(seeds):
        lines.append(f"| features, untrained encoder of seed {seed} | {spread(features(sets, seed))}")
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True, help="scratch folder of real_report.py")
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--write", action="store_true", help="also write benchmarks/results/real_spread.md")
    options = parser.parse_args()
    text = table(options.work, options.seeds)
    print(text)
    if options.write:
        (Path(__file__).parent / "results" / "real_spread.md").write_text(text)


if __name__ == "__main__":
    main()
