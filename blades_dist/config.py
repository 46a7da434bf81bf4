"""One typed configuration per stage; ``settings`` reads them from YAML with dotted overrides.

A preset file holds one section per stage (``ingest``, ``pretrain``, ``fit``, ``evaluate``, ``serve`` ...); each
job reads its own section, so one file describes a whole run. Unknown keys are errors.
"""

from pathlib import Path
from typing import Any, Literal

from pydantic import Field, field_validator, model_validator

from blades_dist.settings import Config

SPLITS = ("train", "val", "calibration", "test")


class RayConfig(Config):
    num_cpus: int | None = Field(None, ge=1, description="logical CPUs of a cluster started here; None: all")


class SimulateConfig(Config):
    """Embedded data set: simulated photographs and simulated generators."""

    output: Path = Path("runs/demo/data")
    photographs: int = Field(4000, ge=1)
    generated_per_family: int = Field(150, ge=0)
    size: int = Field(128, ge=64, description="pixels a side")
    seed: int = 0
    processes: int | None = Field(None, ge=1, description="None: one a core")


class IngestConfig(Config):
    """Image files to Parquet shards."""

    source: Path = Field(description="folder of images, searched recursively")
    output: Path = Field(description="folder for shards, manifest.json and quarantine.parquet")
    kind: Literal["photographs", "generated"] = "photographs"
    locator: Literal["haar"] = "haar"
    min_face_px: int = Field(64, ge=16, description="smaller faces are quarantined; pixels a side of the box")
    crop_scale: float = Field(1.3, ge=1.0, le=3.0, description="side of the crop over side of the face box")
    min_tags: int = Field(1, ge=0, description="a photograph with fewer usable EXIF tags is quarantined")
    max_pixels: int = Field(100_000_000, ge=1)
    max_bytes: int = Field(64 * 2**20, ge=1)
    splits: dict[str, float] = Field({"train": 0.7, "val": 0.1, "calibration": 0.1, "test": 0.1})
    split_seed: int = 0
    ordinal_edges: dict[str, tuple[float, float]] | None = Field(
        None, description="two bin edges an ordinal tag; None: tertiles of the training split"
    )
    rows_per_group: int = Field(64, ge=1)
    shard_mebibytes: int = Field(128, ge=1)
    ray: RayConfig = RayConfig()

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
        if self.kind == "photographs" and self.min_tags == 0:
            raise ValueError("min_tags: photographs need at least one EXIF tag each; 0 is for kind: generated")
        return self


class StreamConfig(Config):
    shards: Path = Field(description="folder written by the ingest job")
    image_size: int = Field(224, ge=32, description="pixels a side, as the encoder sees it")
    window_groups: int = Field(16, ge=1, description="row groups whose rows are shuffled together")
    buffer_mebibytes: int = Field(128, ge=1, description="decoded faces a worker has ready, and as many on the way")
    task_cpus: float = Field(0.5, gt=0, description="logical CPUs of one decoding task")
    train_split: Literal["train", "val", "calibration", "test"] = "train"
    val_split: Literal["train", "val", "calibration", "test"] = "val"

    @model_validator(mode="after")
    def _held_out(self) -> "StreamConfig":
        if self.train_split == self.val_split:
            raise ValueError("val_split: the outer objective needs photographs that train_split does not hold")
        return self


class ImageTowerConfig(Config):
    preset: Literal["resnet50", "resnet_small", "resnet_tiny"] = "resnet50"
    pretrained: str | None = Field(None, description="Hugging Face name or folder of a ResNet; None: from scratch")
    highpass: float = Field(
        0.0, ge=0, description="gain of a fixed high-pass residual as three more input channels; 0: none"
    )
    mean: tuple[float, float, float] = (0.48145466, 0.4578275, 0.40821073)
    std: tuple[float, float, float] = (0.26862954, 0.26130258, 0.27577711)

    @model_validator(mode="after")
    def _channels(self) -> "ImageTowerConfig":
        if self.pretrained is not None and self.highpass:
            raise ValueError("highpass: a pretrained ResNet takes three channels; set it to 0")
        return self


class TextTowerConfig(Config):
    pretrained: str | None = Field(None, description="Hugging Face name or folder of a GPT-2; None: from scratch")
    layers: int = Field(12, ge=1)
    width: int = Field(512, ge=8)
    heads: int = Field(8, ge=1)

    @model_validator(mode="after")
    def _heads(self) -> "TextTowerConfig":
        if self.width % self.heads:
            raise ValueError(f"heads: {self.heads} does not divide width {self.width}")
        return self


class ModelConfig(Config):
    image: ImageTowerConfig = ImageTowerConfig()
    text: TextTowerConfig = TextTowerConfig()
    embed_dim: int = Field(768, ge=2)
    logit_scale: float = Field(1 / 0.07, gt=0, le=100, description="start value of exp(logit_scale)")
    learn_logit_scale: bool = True
    batchnorm: Literal["sync", "local", "frozen"] = "sync"


class LossConfig(Config):
    gamma: float = Field(2.0, ge=0, description="focal exponent of the categorical tasks")
    ranking_scale: float = Field(2.0, gt=0, description="s in p = Phi(s (e_a - e_b))")
    flash: bool = Field(False, description="adds the flash task (C = 52)")


class BilevelConfig(Config):
    weighting: Literal["bilevel", "fixed"] = "bilevel"
    route: Literal["exact", "finite_difference"] = "exact"
    lr: float = Field(3e-4, gt=0, description="beta: Adam's step size for the task weights")
    initial: float | dict[str, float] = Field(1.0, description="start value of every weight, or one a task")
    nonnegative: bool = True
    every: int = Field(1, ge=1, description="outer step at every n-th inner step")


class ManipulateConfig(Config):
    photographic_share: float = Field(0.5, ge=0, le=1, description="share of samples left as they are")
    warp_share: float = Field(0.25, ge=0, le=1, description="share of manipulated samples warped as a whole")
    warp_strength: float = Field(0.06, gt=0, le=0.3, description="grid displacement over image side")


class TrainConfig(Config):
    lr: float = Field(1e-5, gt=0, description="alpha: AdamW's step size")
    weight_decay: float = Field(1e-3, ge=0)
    schedule: Literal["cosine", "constant"] = "cosine"
    warmup_steps: int = Field(0, ge=0)
    epochs: int = Field(20, ge=0, description="0: export the encoder untrained, as a baseline")
    max_steps: int | None = Field(None, ge=1, description="stop after this many steps; None: all epochs")
    batch_size: int = Field(48, ge=1, description="photographs a worker and step")
    workers: int = Field(1, ge=1)
    gpu: bool = False
    cpus_per_worker: float = Field(1.0, gt=0)
    threads_per_worker: int | None = Field(None, ge=1, description="torch threads; None: cores / workers")
    precision: Literal["fp32", "bf16"] = "fp32"
    zero_stage: int = Field(0, ge=0, le=2)
    clip_norm: float = Field(0.0, ge=0, description="gradient norm bound; 0: none")
    seed: int = 0
    checkpoint_every: int = Field(500, ge=1, description="steps")
    keep_checkpoints: int = Field(2, ge=1)
    log_every: int = Field(20, ge=1, description="steps")
    max_failures: int = Field(0, ge=0, description="worker-group restarts before the run fails")

    @field_validator("zero_stage", mode="before")
    @classmethod
    def _stage(cls, value: Any) -> Any:
        if value == 3:
            raise ValueError(
                "ZeRO stage 3 is not possible here: it splits every parameter over the ranks, and the outer step "
                "evaluates the model at other parameters (functional_call), which needs them whole; allowed: 0, 1, 2"
            )
        return value


class PretrainConfig(Config):
    """Self-supervised pretraining of the joint encoder."""

    name: str = Field("pretrain", pattern=r"^[A-Za-z0-9._-]+$", description="the same name resumes the run")
    storage: Path = Field(Path("runs"), description="run folders live here")
    data: StreamConfig
    model: ModelConfig = ModelConfig()
    loss: LossConfig = LossConfig()
    bilevel: BilevelConfig = BilevelConfig()
    manipulate: ManipulateConfig = ManipulateConfig()
    train: TrainConfig = TrainConfig()
    ray: RayConfig = RayConfig()


class OneClassConfig(Config):
    components: int = Field(10, ge=1)
    covariance: Literal["full", "tied", "diag", "spherical"] = "full"
    pca: int | None = Field(None, ge=1, description="whitened principal components kept; None: raw features")
    regularisation: float = Field(1e-6, gt=0, description="added to covariance diagonals")
    starts: int = Field(3, ge=1)


class BinaryConfig(Config):
    hidden: int = Field(1536, ge=1)
    epochs: int = Field(50, ge=1)
    lr: float = Field(1e-3, gt=0)
    weight_decay: float = Field(1e-4, ge=0)
    batch_size: int = Field(256, ge=1)
    pseudo_outliers: float = Field(0.05, ge=0, lt=1, description="share of real faces of lowest likelihood")


class FitConfig(Config):
    """Detector on frozen features."""

    kind: Literal["oc", "bc"] = "oc"
    encoder: Path = Field(description="encoder folder written by the pretrain job")
    shards: Path = Field(description="shard folder of photographs")
    generated: Path | None = Field(None, description="shard folder of AI faces; bc only")
    generators: list[str] | None = Field(None, description="generators bc may train on; None: all")
    output: Path = Field(description="folder of the detector bundle")
    oc: OneClassConfig = OneClassConfig()
    bc: BinaryConfig = BinaryConfig()
    fpr: float = Field(0.05, gt=0, lt=1, description="false-positive rate of the threshold, on the calibration split")
    batch_size: int = Field(128, ge=1)
    seed: int = 0
    ray: RayConfig = RayConfig()

    @model_validator(mode="after")
    def _generated(self) -> "FitConfig":
        if (self.kind == "bc") != (self.generated is not None):
            raise ValueError("generated: a shard folder of AI faces is needed by kind: bc and not used by kind: oc")
        return self


class EvaluateConfig(Config):
    """Tables, plots and report for any number of detectors side by side."""

    detectors: dict[str, Path] = Field(description="name to bundle folder; the first is the main one", min_length=1)
    shards: Path = Field(description="shard folder of photographs; its test split is the real side")
    generated: Path = Field(description="shard folder of AI faces")
    output: Path = Field(description="folder of the report")
    history: Path | None = Field(None, description="run folder of the pretrain job, for its weights' trajectories")
    bootstrap: int = Field(2000, ge=100)
    confidence: float = Field(0.95, gt=0.5, lt=1)
    batch_size: int = Field(128, ge=1)
    seed: int = 0
    ray: RayConfig = RayConfig()


class ServeConfig(Config):
    """HTTP endpoint."""

    detector: Path = Field(description="bundle folder")
    host: Literal["127.0.0.1", "::1", "localhost"] = Field(
        "127.0.0.1", description="loopback only, until requests are authenticated"
    )
    port: int = Field(8000, ge=1, le=65535)
    replicas: int = Field(1, ge=1)
    max_bytes: int = Field(20 * 2**20, ge=1, description="largest request body")
    max_pixels: int = Field(50_000_000, ge=1)
    max_batch_size: int = Field(16, ge=1)
    batch_wait_seconds: float = Field(0.01, ge=0)
    ray: RayConfig = RayConfig()
