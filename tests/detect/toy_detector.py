"""Small real things for the tests of detect and serving: simulated photographs, shards, a random encoder, bundles."""

import hashlib
import json
from pathlib import Path
from typing import Literal

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from blades_dist.config import (
    BinaryConfig,
    ImageTowerConfig,
    IngestConfig,
    ModelConfig,
    OneClassConfig,
    TextTowerConfig,
)
from blades_dist.data.crops import Photo, process_photo, split_of
from blades_dist.data.faces import parse_sidecar, sidecar_of
from blades_dist.data.records import MANIFEST, Manifest, Shard
from blades_dist.data.shards import file_sha256, pack
from blades_dist.data.simulate import photograph
from blades_dist.data.sources.base import Given
from blades_dist.detect.binary import fit_binary
from blades_dist.detect.bundle import save_detector
from blades_dist.detect.calibrate import calibrate, measure
from blades_dist.detect.info import (
    CalibrationSummary,
    DetectorInfo,
    OperatingPoint,
    Preprocessing,
    Provenance,
    Training,
)
from blades_dist.detect.one_class import fit_one_class
from blades_dist.models.export import FrozenEncoder, freeze
from blades_dist.models.joint import build_joint_model
from blades_dist.tasks import task_set

SIZE, DIMENSIONS = 32, 16


def tiny_encoder(seed: int = 0) -> FrozenEncoder:
    config = ModelConfig(
        image=ImageTowerConfig(preset="resnet_tiny"),
        text=TextTowerConfig(layers=1, width=16, heads=2),
        embed_dim=DIMENSIONS,
        batchnorm="frozen",
    )
    return freeze(build_joint_model(config, task_set(), seed), task_set(), SIZE, {"note": "untrained"})


def write_photographs(folder: Path, indices: range, sidecars: bool = True) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for index in indices:
        image = photograph(index, seed=5, size=128)
        (folder / f"{index:04d}.jpg").write_bytes(image.jpeg)
        if sidecars:
            (folder / f"{index:04d}.faces.json").write_text(json.dumps(image.sidecar))


def write_shards(source: Path, output: Path, kind: Literal["photographs", "generated"] = "photographs") -> Manifest:
    """What ingest writes, without Ray; each first-level folder of ``source`` is a source."""
    splits = {"train": 0.5, "val": 0.2, "calibration": 0.3}
    config = IngestConfig(source=source, output=output, kind=kind, min_tags=int(kind == "photographs"), splits=splits)
    output.mkdir(parents=True)
    rows: dict[str, list[pa.Table]] = {}
    for file in sorted(source.rglob("*.jpg")):
        data, sidecar = file.read_bytes(), sidecar_of(file)
        digest = hashlib.sha256(data).hexdigest()
        relative = file.relative_to(source)
        given = Given(faces=parse_sidecar(sidecar.read_bytes()) if sidecar.is_file() else None)
        photo = Photo(relative.as_posix(), relative.parts[0], digest, split_of(digest, 0, splits))
        rows.setdefault(photo.split, []).append(process_photo(photo, data, given, config).rows)
    shards = []
    for split, own in rows.items():
        part = output / "part"
        table, target = pa.concat_tables(own), output / f"{split}-00000.parquet"
        pq.write_table(table, part, write_statistics=["split"])
        groups = pack([(part, table["photo"].unique().to_pylist())], target, split, {}, 16)
        shards.append(
            Shard(name=target.name, split=split, rows=len(table), row_groups=groups, sha256=file_sha256(target))
        )
        part.unlink()
    names = [name for own in rows.values() for table in own for name in table["source"].to_pylist()]
    manifest = Manifest(
        kind=kind,
        shards=shards,
        ordinal_edges={},
        vocabularies={},
        split_seed=0,
        files_seen=len(names),
        faces_seen=len(names),
        rows={split: sum(map(len, own)) for split, own in rows.items()},
        sources={name: names.count(name) for name in set(names)},
        quarantine={},
        locator=config.locator,
        crop_scale=config.crop_scale,
        min_face_px=config.min_face_px,
    )
    (output / MANIFEST).write_text(manifest.model_dump_json())
    return manifest


def write_bundle(folder: Path, kind: Literal["oc", "bc"] = "oc") -> DetectorInfo:
    """A bundle of the tiny encoder with a head fitted on its features of random pictures."""
    encoder, random = tiny_encoder(), torch.Generator().manual_seed(1)
    pictures = torch.randint(0, 256, (360, 3, SIZE, SIZE), dtype=torch.uint8, generator=random)
    features = encoder.features(pictures).numpy()
    config = OneClassConfig(components=2, pca=4)
    head = fit_one_class(features[:120], config, seed=0)
    if kind == "bc":
        fakes = features[240:] + 0.02
        likelihood = head.score(features[:120])
        head, _ = fit_binary(features[:120], fakes, likelihood, BinaryConfig(hidden=8, epochs=3), seed=0)
    calibration = calibrate(head.score(features[120:239]), 0.05)
    rates = measure(calibration, head.score(features[239:]))
    points = [
        OperatingPoint(fpr=fpr, threshold=threshold, measured=rates.get(fpr))
        for fpr, threshold in calibration.thresholds.items()
    ]
    n, smallest = len(calibration.scores), calibration.smallest_fpr
    info = DetectorInfo(
        kind=kind,
        covariance="full" if kind == "oc" else None,
        fpr=0.05,
        operating_points=points,
        calibration=CalibrationSummary(split="calibration", n=n, smallest_fpr=smallest, quantiles={}),
        measured_split="val",
        preprocessing=Preprocessing(image_size=SIZE, crop_scale=1.3, min_face_px=48, locator="haar"),
        labels=encoder.info.classes,
        training=Training(split="train", real=120, sources={"random": 120}, generated={}, figures={"bic": 1.5}),
        provenance=Provenance(
            manifest_digest=64 * "0",
            generated_digest=None,
            encoder_digest=64 * "1",
            encoder={},
            config={},
            code_version="0",
        ),
    )
    return save_detector(folder, info, encoder, head, calibration)


def unit_rows(n: int, dimensions: int, seed: int = 0) -> np.ndarray:
    """(n, D) float32 rows of norm 1 with structure: a few directions carry most of the variance."""
    random = np.random.default_rng(seed)
    rows = random.normal(size=(n, dimensions)) * np.linspace(1, 0.2, dimensions) + random.integers(0, 3, (n, 1))
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)
