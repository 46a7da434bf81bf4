"""A sweep's configuration that is quick, for the tests of this folder."""

from pathlib import Path
from typing import Any

from blades_dist.tuning.config import SweepConfig

SPACE = {"train.lr": {"low": 1e-5, "high": 1e-2, "log": True}, "bilevel.initial.face_coarse": {"low": 0.5, "high": 2.0}}
DETECTORS = {"kind": ["oc", "knn", "mahalanobis"], "fpr": [0.05, 0.1], "oc.n_components": {"low": 1, "high": 3}}


def config(folder: Path, shards: Path | str = "shards", **values: Any) -> SweepConfig:
    """``values`` by section, laid over the small defaults."""
    sections: dict[str, Any] = {
        "name": "small",
        "storage": folder,
        "pretrain": {
            "data": {"shards": shards, "image_size": 64, "task_cpus": 0.25},
            "model": {
                "image": {"preset": "resnet_tiny"},
                "text": {"layers": 1, "width": 32, "heads": 2},
                "embed_dim": 16,
            },
            "train": {"batch_size": 8, "max_steps": 6, "cpus_per_worker": 0.5, "log_every": 100},
        },
        "fit": {"oc": {"n_components": 1, "n_pca_components": 4, "n_init": 1}, "re_encodings": []},
        "encoders": {"candidates": 2, "validate_every": 2, "grace": 2, "reduction": 2, "space": SPACE},
        "detectors": {"trials": 7, "space": DETECTORS},
        "bootstrap": 100,
    }
    for key, value in values.items():
        own = sections.get(key)
        sections[key] = {**own, **value} if isinstance(own, dict) and isinstance(value, dict) else value
    return SweepConfig.model_validate(sections)
