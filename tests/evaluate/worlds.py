"""Shards of random textures, random encoders and fitted bundles: a small world of real parts to evaluate."""

import hashlib

import cv2
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from blades_dist.config import EvaluateConfig, FitConfig, ImageTowerConfig, ModelConfig, TextTowerConfig
from blades_dist.data.records import MANIFEST, Manifest, Shard, label_column, shard_schema
from blades_dist.detect.fit import fit_detector
from blades_dist.models.export import freeze, save_encoder
from blades_dist.models.joint import build_joint_model
from blades_dist.tasks import TAGS, task_set

GENERATORS = ("autoencoder", "gan_nearest")
VIEW = "jpeg75"  # the one re-encoding of its detectors


def _row(rng, split, source, index, blur, codec="jpeg", side=None):
    side = side or int(rng.integers(40, 90))
    pixels = rng.integers(0, 256, (side, side, 3), dtype=np.uint8)
    pixels = cv2.GaussianBlur(pixels, (0, 0), blur) if blur else pixels
    row = {item.name: None for item in shard_schema()} | {label_column(tag): -1 for tag in TAGS}
    return row | {
        "id": hashlib.sha256(f"{source}{split}{index}".encode()).hexdigest() + "-0",
        "photo": f"{source}{split}{index}",
        "split": split,
        "source": source,
        "path": f"{source}/{index:06d}.jpg",
        "image": cv2.imencode(".png", pixels)[1].tobytes(),
        "width": side,
        "height": side,
        "box": [0.0, 0.0, side / 1.3, side / 1.3],
        "landmarks": [side / 2] * 10,
        "codec": codec,
        "jpeg_quality": float(rng.integers(80, 97)) if codec == "jpeg" else None,
    }


def write_textures(folder, kind, counts, blurs, seed, planted=None):
    """A shard set with ``counts`` by split, of each source in ``blurs``; ``planted``: a source's ``codec`` or ``side``
    in pixels, where it is not that of all."""
    rng, shards = np.random.default_rng(seed), []
    folder.mkdir(parents=True)
    for split, n in counts.items():
        own = planted or {}
        rows = [_row(rng, split, name, i, blur, **own.get(name, {})) for name, blur in blurs.items() for i in range(n)]
        name = f"{split}-00000.parquet"
        pq.write_table(pa.Table.from_pylist(rows, shard_schema()), folder / name, row_group_size=32)
        digest = hashlib.sha256((folder / name).read_bytes()).hexdigest()
        groups = [32] * (len(rows) // 32) + [len(rows) % 32] * bool(len(rows) % 32)
        shards.append(Shard(name=name, split=split, rows=len(rows), row_groups=groups, sha256=digest))
    manifest = Manifest(
        kind=kind,
        shards=shards,
        ordinal_edges={},
        vocabularies={},
        split_seed=0,
        files_seen=sum(s.rows for s in shards),
        faces_seen=sum(s.rows for s in shards),
        rows={s.split: s.rows for s in shards},
        sources={name: sum(counts.values()) for name in blurs},
        quarantine={},
        crop_scale=1.3,
        min_face_px=40,
        locator="haar",
    )
    (folder / MANIFEST).write_text(manifest.model_dump_json())


def save_random_encoder(folder, seed):
    towers = {"image": ImageTowerConfig(preset="resnet_tiny"), "text": TextTowerConfig(layers=1, width=16, heads=2)}
    model = build_joint_model(ModelConfig(**towers, embed_dim=16, batchnorm="frozen"), task_set(), seed)
    save_encoder(freeze(model, task_set(), 32, {"note": "<untrained> & unescaped"}), folder)


def fit(root, name, **values):
    oc = {"n_components": 2, "n_pca_components": 4, "n_init": 1}
    config = {"shards": root / "shards", "output": root / name, "oc": oc, "bc": {"hidden": 8, "epochs": 5}}
    config["re_encodings"] = [VIEW]
    fit_detector(FitConfig.model_validate(config | values), lambda _: None)


def evaluation(world, **values):
    detectors = {"main": str(world / "main"), "a <b> & c": str(world / "other"), "bc": str(world / "bc")}
    detectors |= {"loo": str(world / "loo"), "mine": "tests.evaluate.scorers:brightness"}
    known = {"shards": world / "shards", "generated": world / "generated", "output": world / "out", "bootstrap": 200}
    return EvaluateConfig.model_validate({"detectors": detectors, "history": world / "run"} | known | values)
