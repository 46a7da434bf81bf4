"""Making, ingesting and streaming data."""

from pathlib import Path
from typing import Any, Literal

from pydantic import Field, field_validator, model_validator

from blades_dist.config.cluster import RayConfig
from blades_dist.settings import Config

SPLITS = ("train", "val", "calibration", "test")


class SimulateConfig(Config):
    """Embedded data set: simulated photographs and simulated generators."""

    photographs: int = Field(4000, ge=1)
    generated_per_family: int = Field(150, ge=0)
    size: int = Field(128, ge=64, description="pixels a side")
    seed: int = 0
    processes: int | None = Field(None, ge=1, description="None: one a core")


class IngestConfig(Config):
    """A collection of photographs to Parquet shards."""

    source: tuple[str, ...] = Field(description="folders, files or URIs of one format; one, or a list")
    format: Literal["auto", "folder", "fdf", "ffhq", "webdataset", "shards", "list"] = "auto"
    metadata: str | None = Field(
        None, description="formats fdf and ffhq: the data set's JSON file; None: where the data set itself puts it"
    )
    labels: str | None = Field(None, description="format fdf: the released EXIF label file")
    output: Path = Field(description="folder for shards, manifest.json and quarantine.parquet")
    kind: Literal["photographs", "generated"] = "photographs"
    faces: Literal["located", "whole"] = Field(
        "located", description="whole: every picture is a face already, its largest central square is the crop"
    )
    locator: Literal["haar", "yunet", "mediapipe"] = "haar"
    locator_model: Path | None = Field(None, description="model file of locators yunet and mediapipe")
    min_face_px: int = Field(64, ge=16, description="smaller faces are quarantined; pixels a side of the box")
    crop_scale: float = Field(1.3, ge=1.0, le=3.0, description="side of the crop over side of the face box")
    min_tags: int = Field(1, ge=0, description="a photograph with fewer usable EXIF tags is quarantined")
    max_pixels: int = Field(100_000_000, ge=1)
    max_bytes: int = Field(64 * 2**20, ge=1)
    seconds_per_photo: float = Field(60.0, gt=0, description="a photo that takes longer is quarantined")
    memory_mebibytes: int = Field(1536, ge=512, description="bound of the process that decodes photos")
    near_duplicate_bits: int = Field(
        16, ge=0, le=16, description="photos whose 256-bit perceptual hashes differ in fewer bits are one; 0: never"
    )
    splits: dict[str, float] = Field({"train": 0.7, "val": 0.1, "calibration": 0.1, "test": 0.1})
    split_seed: int = 0
    ordinal_edges: dict[str, tuple[float, float]] | None = Field(
        None, description="two bin edges an ordinal tag; None: tertiles of the training split"
    )
    rows_per_group: int = Field(64, ge=1)
    shard_mebibytes: int = Field(128, ge=1)
    ray: RayConfig = RayConfig()

    @field_validator("source", mode="before")
    @classmethod
    def _one_or_several(cls, value: Any) -> Any:
        return tuple(str(item) for item in ([value] if isinstance(value, (str, Path)) else value))

    @field_validator("splits")
    @classmethod
    def _splits(cls, value: dict[str, float]) -> dict[str, float]:
        unknown = set(value) - set(SPLITS)
        if unknown:
            raise ValueError(f"unknown split {sorted(unknown)}; allowed: {', '.join(SPLITS)}")
        if any(share < 0 for share in value.values()) or abs(sum(value.values()) - 1) > 1e-9:
            raise ValueError(f"shares must be >= 0 and sum to 1, got {value}")
        return value

    @model_validator(mode="after")
    def _generated(self) -> "IngestConfig":
        if (self.locator == "haar") != (self.locator_model is None):
            raise ValueError(
                f"locator_model: yunet and mediapipe need a model file, haar has none; given: {self.locator}"
            )
        learned = any(self.splits.get(name, 0) > 0 for name in ("train", "val"))
        if self.kind == "photographs" and self.min_tags == 0 and learned:
            raise ValueError(
                "min_tags: photographs to train on need at least one EXIF tag each; 0 is for kind: generated and for "
                "sets whose splits are calibration and test only"
            )
        return self


class StreamConfig(Config):
    shards: Path = Field(description="folder written by the ingest job")
    image_size: int = Field(224, ge=32, description="pixels a side, as the encoder sees it")
    window_groups: int = Field(16, ge=1, description="row groups whose rows are shuffled together")
    buffer_mebibytes: int = Field(128, ge=1, description="decoded faces a worker has ready, and as many on the way")
    task_cpus: float = Field(0.5, gt=0, description="logical CPUs of one decoding task")
    jitter: float = Field(
        0.0,
        ge=0,
        le=0.3,
        description="training faces are cut from the stored crop smaller by up to this share; 0: whole",
    )
    train_split: Literal["train", "val", "calibration", "test"] = "train"
    val_split: Literal["train", "val", "calibration", "test"] = "val"

    @model_validator(mode="after")
    def _held_out(self) -> "StreamConfig":
        if self.train_split == self.val_split:
            raise ValueError("val_split: the outer objective needs photographs that train_split does not hold")
        return self
