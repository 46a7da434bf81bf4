"""What several files of tests evaluate: made once a session, since fitting and features cost seconds."""

import json

import pytest

from blades_dist.config import ExtractConfig
from blades_dist.detect.extract import Request, compute
from blades_dist.tasks import task_set
from tests.evaluate.worlds import GENERATORS, VIEW, fit, save_random_encoder, write_textures


@pytest.fixture(scope="session")
def world(tmp_path_factory, ray_cluster):
    root = tmp_path_factory.mktemp("world")
    photographs = {"train": 60, "val": 30, "calibration": 60, "test": 50}
    write_textures(root / "shards", "photographs", photographs, {"camera": 0.0}, seed=0)
    fakes = {"train": 20, "test": 25}
    write_textures(root / "generated", "generated", fakes, dict(zip(GENERATORS, (0.5, 0.3), strict=True)), seed=1)
    for seed, name in enumerate(("main", "other")):
        save_random_encoder(root / f"encoder-{name}", seed)
    _features(root)
    for name in ("main", "other"):
        fit(root, name, kind="oc", encoder=str(root / f"encoder-{name}"))
    known = {"kind": "bc", "encoder": str(root / "encoder-main"), "generated": root / "generated"}
    fit(root, "bc", **known, generators=["gan_nearest"])
    fit(root, "loo", **known, leave_one_out=True)
    run = root / "run"
    run.mkdir()
    names = list(task_set().names)
    (run / "weights.json").write_text(
        json.dumps({"names": names, "history": [[s, [1 + s / 100] * len(names)] for s in range(5)]})
    )
    task = {"accuracy": 0.6, "low": 0.55, "high": 0.65, "majority": 0.4, "n": 100}
    coarse = {"value": 0.9, "low": 0.85, "high": 0.95, "n": 80}
    (run / "validation.json").write_text(json.dumps({"coarse_auc": coarse, "tasks": {"iso": task}}))
    return root


def _features(root):
    """All that fits and evaluations below read, in one job; they find it beside the shards."""
    sides = {"shards": ("train", "val", "calibration", "test"), "generated": ("train", "test")}
    encoders, views = [root / "encoder-main", root / "encoder-other"], ("", VIEW)
    wanted = [
        (encoder, root / side, split) for encoder in encoders for side, splits in sides.items() for split in splits
    ]
    compute([Request(*one, view) for one in wanted for view in views], ExtractConfig(), lambda _: None)
