"""Small real things for the tests of detect and serving: simulated photographs, shards, a random encoder, bundles."""

import hashlib
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Literal

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from blades_dist.config import (
    FitConfig,
    HeadConfig,
    ImageTowerConfig,
    IngestConfig,
    MixtureConfig,
    ModelConfig,
    PerceptronConfig,
    TextTowerConfig,
)
from blades_dist.config.heads import SECTIONS
from blades_dist.data.crops import Photo, process_photo, split_of
from blades_dist.data.faces import parse_sidecar, sidecar_of
from blades_dist.data.records import MANIFEST, Manifest, Shard
from blades_dist.data.shards import file_sha256, write_shard
from blades_dist.data.sources.base import Annotations
from blades_dist.detect.detector import Detector, save_detector
from blades_dist.detect.features import FeatureSet, encode
from blades_dist.detect.fit import CALIBRATE, FIT, MEASURE, RealFaces, assemble
from blades_dist.detect.heads import HEADS, fit_head
from blades_dist.detect.heads.base import FitData, FitOptions, Head
from blades_dist.detect.info import DetectorInfo
from blades_dist.models.export import FrozenEncoder, freeze
from blades_dist.models.joint import build_joint_model
from blades_dist.perturb import apply
from blades_dist.simulate.dataset import photograph
from blades_dist.tasks import TAGS, task_set

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
        given = Annotations(faces=parse_sidecar(sidecar.read_bytes()) if sidecar.is_file() else None)
        photo = Photo(relative.as_posix(), relative.parts[0], digest, split_of(digest, 0, splits))
        rows.setdefault(photo.split, []).append(process_photo(photo, data, given, config).rows)
    shards = []
    for split, own in rows.items():
        part = output / "part"
        table, target = pa.concat_tables(own), output / f"{split}-00000.parquet"
        pq.write_table(table, part, write_statistics=["split"])
        groups = write_shard([(part, table["photo"].unique().to_pylist())], target, split, {}, 16)
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


def toy_detector(kind: str = "oc", re_encodings: tuple[str, ...] = ("jpeg75",)) -> Detector:
    """The tiny encoder with a head of a registered kind, fitted on its features of random pictures, calibrated and
    measured on others."""
    encoder, random = tiny_encoder(), np.random.default_rng(1)
    pictures = random.integers(0, 256, (360, SIZE, SIZE, 3), dtype=np.uint8)
    splits = {FIT: pictures[:120], CALIBRATE: pictures[120:239], MEASURE: pictures[239:]}
    real = RealFaces(
        Path("toy"),
        toy_manifest(),
        {name: _faces(encoder, own) for name, own in splits.items()},
        {
            name: {view: _faces(encoder, [apply(view, face) for face in splits[name]]) for view in re_encodings}
            for name in (CALIBRATE, MEASURE)
        },
    )
    features = real.splits[FIT].features
    config = FitConfig(
        kind=kind,
        encoder="toy",
        shards=Path("toy"),
        output=Path("toy"),
        generated=Path("toy") if SECTIONS[kind].needs_generated else None,
        oc=MixtureConfig(n_components=2, n_pca_components=4),
        bc=PerceptronConfig(hidden=8, epochs=3),
        re_encodings=re_encodings,
    )
    generated = real.splits[MEASURE].features + 0.02
    data = FitData(features, generated, likelihood=lambda: fitted(config.section("oc"), features).score(features))
    return assemble(config, encoder, real, fit_head(config, data, FitOptions()))


def fitted(section: HeadConfig, features: np.ndarray, seed: int = 0, threads: int | None = None) -> Head:
    """A head of real faces' features alone, as its section says."""
    return HEADS[section.kind].fit(FitData(features), section, FitOptions(seed, threads)).head


def write_bundle(folder: Path, kind: str = "oc") -> DetectorInfo:
    """The bundle of ``toy_detector``."""
    return save_detector(folder, toy_detector(kind))


def toy_manifest() -> Manifest:
    return Manifest(
        kind="photographs",
        shards=[],
        ordinal_edges={"iso": (100.0, 400.0)},
        vocabularies={},
        split_seed=0,
        files_seen=0,
        faces_seen=0,
        rows={},
        sources={},
        quarantine={},
        locator="haar",
        crop_scale=1.3,
        min_face_px=48,
    )


def _faces(encoder: FrozenEncoder, pictures: Iterable[np.ndarray]) -> FeatureSet:
    features = encode(encoder, pictures, 64)
    n = len(features)
    labels = np.random.default_rng(n).integers(-1, 2, (n, len(TAGS)))
    return FeatureSet(features, [f"{i:08x}" for i in range(n)], ["random"] * n, [f"{i}.jpg" for i in range(n)], labels)


def unit_rows(n: int, dimensions: int, seed: int = 0) -> np.ndarray:
    """(n, D) float32 rows of norm 1 with structure: a few directions carry most of the variance."""
    random = np.random.default_rng(seed)
    rows = random.normal(size=(n, dimensions)) * np.linspace(1, 0.2, dimensions) + random.integers(0, 3, (n, 1))
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)
