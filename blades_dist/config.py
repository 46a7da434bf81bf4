"""One typed configuration per stage; ``settings`` reads them from YAML with dotted overrides.

A preset file holds one section per stage (``ingest``, ``pretrain``, ``fit``, ``evaluate``, ``serve`` ...); each
job reads its own section, so one file describes a whole run. Unknown keys are errors.
"""

import math
from pathlib import Path
from typing import Any, Literal
from urllib.parse import urlsplit

from pydantic import Field, field_validator, model_validator

from blades_dist.serving.config import ServiceConfig
from blades_dist.settings import Config

SPLITS = ("train", "val", "calibration", "test")
MLFLOW_SCHEMES = ("http", "https", "sqlite", "postgresql", "mysql", "mssql")


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


class ImageTowerConfig(Config):
    preset: Literal["resnet50", "resnet_small", "resnet_tiny"] = "resnet50"
    pretrained: str | None = Field(None, description="Hugging Face name or folder of a ResNet; None: from scratch")
    weights: Path | None = Field(
        None, description="state dict in torchvision's layout (.safetensors, or .pt/.pth without code) for the preset"
    )
    highpass: float = Field(
        0.0, ge=0, description="gain of a fixed high-pass residual as three more input channels; 0: none"
    )
    mean: tuple[float, float, float] = (0.48145466, 0.4578275, 0.40821073)
    std: tuple[float, float, float] = (0.26862954, 0.26130258, 0.27577711)

    @model_validator(mode="after")
    def _channels(self) -> "ImageTowerConfig":
        if self.pretrained is not None and self.weights is not None:
            raise ValueError("weights: pretrained names other weights; set one of the two")
        if self.highpass and (self.pretrained is not None or self.weights is not None):
            raise ValueError("highpass: a pretrained ResNet takes three channels; set it to 0")
        return self


class TextTowerConfig(Config):
    kind: Literal["gpt2", "clip"] = "gpt2"
    pretrained: str | None = Field(
        None, description="Hugging Face name or folder of a GPT-2 or CLIP text tower; None: from scratch"
    )
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
    activation_checkpointing: bool = Field(False, description="recompute activations in the backward to save memory")
    compile: bool = Field(False, description="torch.compile of both towers; forward-mode passes stay eager")

    @model_validator(mode="after")
    def _compiled(self) -> "ModelConfig":
        if self.compile and self.activation_checkpointing:
            raise ValueError(
                "compile: the compiler itself chooses what to recompute; not with activation_checkpointing"
            )
        return self


class LossConfig(Config):
    gamma: float = Field(2.0, ge=0, description="focal exponent of the categorical tasks; 0, or at least 1")
    ranking_scale: float = Field(2.0, gt=0, description="s in p = Phi(s (e_a - e_b))")
    flash: bool = Field(False, description="adds the flash task (C = 52)")
    kernel: Literal["auto", "torch", "triton"] = Field(
        "auto", description="auto: triton for fp32 and narrower logits on CUDA, else torch"
    )

    @field_validator("gamma")
    @classmethod
    def _gamma(cls, value: float) -> float:
        if 0 < value < 1:
            raise ValueError(f"between 0 and 1 the gradient is infinite at p = 1; use 0 or at least 1, not {value:g}")
        return value


class BilevelConfig(Config):
    weighting: Literal["bilevel", "equal", "fixed", "uncertainty", "dwa"] = Field(
        "bilevel",
        description="bilevel: learned by the outer loop; equal: all 1; fixed: stays at initial; "
        "uncertainty: Kendall et al. 2018; dwa: dynamic weight averaging, Liu et al. 2019",
    )
    route: Literal["exact", "finite_difference", "alternating"] = "exact"
    sync: Literal["exact", "local"] = Field(
        "exact", description="exact: v is summed over workers; local: kept on each, an unbiased estimate"
    )
    lookahead: Literal["sgd", "adamw"] = Field("sgd", description="the inner step that the outer loop differentiates")
    reuse_gradient: bool = Field(
        False, description="the real step takes the look-ahead's gradient; weights then act one step later"
    )
    every: int = Field(1, ge=1, description="outer step at every n-th inner step")
    epsilon: float = Field(0.01, gt=0, description="finite_difference: step along v is epsilon / |v|")
    lr: float = Field(3e-4, gt=0, description="beta: Adam's step size for the task weights")
    adam_eps: float = Field(1e-8, gt=0, description="Adam's epsilon for the task weights")
    initial: float | list[float] | dict[str, float] = Field(
        1.0, description="start value of every weight, or one a task (list in task order, or by name)"
    )
    nonnegative: bool = Field(True, description="project the weights to >= 0 after every outer step")
    normalise: bool = Field(False, description="scale the weights to mean 1 after every outer step")
    frozen: list[str] = Field([], description="tasks whose weight stays at its start value")
    dwa_temperature: float = Field(2.0, gt=0)
    dwa_window: int = Field(100, ge=1, description="steps that dwa averages losses over")

    @model_validator(mode="after")
    def _weights(self) -> "BilevelConfig":
        if self.weighting == "equal" and self.initial != 1.0:
            raise ValueError("initial: weighting equal means 1 for every task; use weighting fixed")
        if self.weighting != "bilevel" and (self.frozen or self.normalise):
            raise ValueError(f"frozen, normalise: these act on learned weights, not on weighting {self.weighting}")
        if self.normalise and not self.nonnegative:
            raise ValueError("normalise: weights of both signs have no sum to be scaled to; set nonnegative")
        return self


class ManipulateConfig(Config):
    photographic_share: float = Field(0.5, ge=0, le=1, description="share of samples left as they are")
    warp_share: float = Field(0.25, ge=0, le=1, description="share of manipulated samples warped as a whole")
    warp_strength: float = Field(0.06, gt=0, le=0.3, description="grid displacement over image side")


class GuardConfig(Config):
    """What happens when a loss, a gradient or a task weight is not finite."""

    nonfinite: Literal["stop", "skip"] = Field(
        "stop", description="stop: end the run at its last good checkpoint; skip: leave that step out and go on"
    )
    max_skips: int = Field(10, ge=1, description="the run stops when more steps than this were skipped")
    check_every: int = Field(100, ge=1, description="steps between checks that lambda is equal on all workers")


SinkName = Literal["tensorboard", "mlflow", "wandb"]


class SinksConfig(Config):
    """Who is told a run's scalars; ``metrics.jsonl`` always is."""

    to: tuple[SinkName, ...] = Field(("tensorboard",), description="tensorboard, mlflow, wandb; []: none of them")
    mlflow_uri: str | None = Field(
        None, description="tracking server (https://...) or database (sqlite:///...); None: RUN/mlflow.db"
    )
    mlflow_experiment: str = Field("blades_dist", min_length=1)
    wandb_mode: Literal["offline", "online"] = Field(
        "offline", description="offline: written to RUN/wandb, for `wandb sync`; online: needs a key and the network"
    )
    wandb_project: str = Field("blades_dist", min_length=1)
    wandb_entity: str | None = None

    @field_validator("to")
    @classmethod
    def _once(cls, value: tuple[SinkName, ...]) -> tuple[SinkName, ...]:
        if len(set(value)) < len(value):
            raise ValueError(f"each at most once, not {', '.join(value)}")
        return value

    @field_validator("mlflow_uri")
    @classmethod
    def _uri(cls, value: str | None) -> str | None:
        if value is None:
            return None
        parts = urlsplit(value)
        if parts.scheme.partition("+")[0] not in MLFLOW_SCHEMES:
            raise ValueError(
                f"MLflow keeps runs on a server or in a database, so it begins with one of "
                f"{', '.join(MLFLOW_SCHEMES)}; for a file: sqlite:////absolute/path/mlflow.db"
            )
        if parts.scheme.startswith("http") and parts.password is not None:
            raise ValueError(
                "a password would be written into the run's config.yaml; set MLFLOW_TRACKING_USERNAME and "
                "MLFLOW_TRACKING_PASSWORD for the workers instead"
            )
        return value


class TrainConfig(Config):
    lr: float = Field(1e-5, gt=0, description="alpha: AdamW's step size")
    weight_decay: float = Field(1e-3, ge=0)
    adam_eps: float = Field(1e-8, gt=0, description="AdamW's epsilon")
    schedule: Literal["cosine", "constant"] = "cosine"
    warmup_steps: int = Field(0, ge=0)
    epochs: int = Field(20, ge=0, description="0: export the encoder untrained, as a baseline")
    max_steps: int | None = Field(None, ge=1, description="stop after this many steps; None: all epochs")
    batch_size: int = Field(48, ge=1, description="photographs a worker and micro-batch, at the most workers")
    accumulate: int = Field(1, ge=1, description="micro-batches whose mean gradient makes one step")
    workers: int | tuple[int, int] = Field(
        1,
        description="a number, or [least, most]: as many as the cluster holds, with the same global batch",
    )
    gpu: bool = False
    gpu_per_worker: float = Field(1.0, gt=0, le=1, description="share of a GPU; below 1 for one worker only")
    cpus_per_worker: float = Field(1.0, gt=0)
    resize_seconds: float = Field(60.0, gt=0, description="workers [least, most]: how often more room is looked for")
    threads_per_worker: int | None = Field(None, ge=1, description="torch threads; None: cores / workers")
    precision: Literal["fp32", "bf16"] = "fp32"
    zero_stage: int = Field(0, ge=0, le=2)
    clip_norm: float = Field(0.0, ge=0, description="gradient norm bound; 0: none")
    guard: GuardConfig = GuardConfig()
    seed: int = 0
    deterministic: bool = Field(
        False, description="only operations that give the same bits every time, one torch thread unless set; slower"
    )
    checkpoint_every: int = Field(500, ge=1, description="steps; what a failure can cost at most")
    keep_checkpoints: int = Field(3, ge=1, description="the newest so many; older ones stand in for damaged ones")
    validate_every: int | None = Field(
        None, ge=1, description="steps between read-outs of the proxy task; None: at the end only"
    )
    validate_rows: int = Field(2000, ge=1, description="validation photographs of such a read-out, at most")
    log_every: int = Field(20, ge=1, description="steps")
    sinks: SinksConfig = SinksConfig()
    record_samples: bool = Field(False, description="write down which photographs each step saw, in samples/")
    max_failures: int = Field(
        3,
        ge=-1,
        description="losses of workers or trainer that are made good, preemptions not counted; -1: all",
    )

    @property
    def worker_range(self) -> tuple[int, int]:
        """Fewest and most workers."""
        return (self.workers, self.workers) if isinstance(self.workers, int) else self.workers

    @property
    def global_batch(self) -> int:
        """Photographs of one micro-batch over all workers, however many there are."""
        return self.batch_size * self.worker_range[1]

    @field_validator("workers")
    @classmethod
    def _workers(cls, value: int | tuple[int, int]) -> int | tuple[int, int]:
        least, most = (value, value) if isinstance(value, int) else value
        if not 1 <= least <= most:
            raise ValueError(f"a number of at least 1, or [least, most] in this order, not {value}")
        return value

    @model_validator(mode="after")
    def _shares(self) -> "TrainConfig":
        least, most = self.worker_range
        uneven = [count for count in range(least, most + 1) if self.global_batch % count]
        if uneven:
            whole = math.lcm(*range(least, most + 1))
            raise ValueError(
                f"workers: the global batch of {self.global_batch} (batch_size x most workers) cannot be shared evenly "
                f"by {', '.join(map(str, uneven))} workers; take a batch_size that makes it a multiple of {whole}"
            )
        if self.gpu and self.gpu_per_worker < 1 and most > 1:
            raise ValueError("gpu_per_worker: NCCL takes one worker a GPU; a share of one is for workers: 1")
        return self

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
    storage: Path = Field(Path("runs"), description="run folders live here; a folder that all workers see")
    start_from: Path | None = Field(
        None,
        description="run folder or checkpoint that a new run starts from: weights, optimiser, lambda, place",
    )
    data: StreamConfig
    model: ModelConfig = ModelConfig()
    loss: LossConfig = LossConfig()
    bilevel: BilevelConfig = BilevelConfig()
    manipulate: ManipulateConfig = ManipulateConfig()
    read_out: ManipulateConfig | None = Field(
        None, description="manipulations that the proxy task is read out on; None: manipulate, as in training"
    )
    train: TrainConfig = TrainConfig()
    ray: RayConfig = RayConfig()

    @model_validator(mode="after")
    def _memory(self) -> "PretrainConfig":
        if self.model.activation_checkpointing and self.bilevel.route == "alternating":
            raise ValueError(
                "model.activation_checkpointing: the alternating route runs the train forward in forward mode, which "
                "activations cannot be recomputed for; use route exact or finite_difference"
            )
        if self.train.accumulate > 1 and self.bilevel.weighting == "bilevel" and not self.bilevel.reuse_gradient:
            raise ValueError(
                "train.accumulate: the outer step over several micro-batches takes the gradient they have left behind; "
                "set bilevel.reuse_gradient=true (weights then act one step later)"
            )
        return self


class OneClassConfig(Config):
    components: int | list[int] = Field(10, description="Gaussians of the mixture; several sizes: choose_by picks one")
    choose_by: Literal["held_out", "bic"] = Field(
        "held_out", description="held_out: highest likelihood of the held-out share; bic: lowest on the fitted rows"
    )
    held_out: float = Field(0.1, gt=0, le=0.5, description="share of the training faces that tells sizes apart")
    covariance: Literal["full", "tied", "diag", "spherical"] = "full"
    pca: int | None = Field(None, ge=1, description="whitened principal components kept; None: raw features")
    regularisation: float = Field(1e-6, gt=0, description="added to covariance diagonals")
    starts: int = Field(3, ge=1)
    iterations: int = Field(300, ge=1, description="EM iterations at most, each start")

    @field_validator("components")
    @classmethod
    def _sizes(cls, value: int | list[int]) -> int | list[int]:
        sizes = [value] if isinstance(value, int) else value
        if not sizes or min(sizes) < 1 or len(set(sizes)) < len(sizes):
            raise ValueError(f"one size or several different ones, each at least 1, not {value}")
        return value

    @property
    def sizes(self) -> list[int]:
        """The sizes to fit, in ascending order."""
        return [self.components] if isinstance(self.components, int) else sorted(self.components)


class MahalanobisConfig(Config):
    shrinkage: float | None = Field(
        None, ge=0, le=1, description="share of the scaled identity in the covariance; None: Ledoit and Wolf's estimate"
    )


class KnnConfig(Config):
    k: int = Field(10, ge=1, description="nearest real faces that are looked at")
    bank: int = Field(20_000, ge=1, description="real faces to compare with, at most; a seeded sample of them")
    distance: Literal["kth", "mean"] = Field("kth", description="kth: to the k-th nearest; mean: over the k nearest")

    @model_validator(mode="after")
    def _enough(self) -> "KnnConfig":
        if self.k > self.bank:
            raise ValueError(f"k: {self.k} nearest of a bank of {self.bank} do not exist")
        return self


class BinaryConfig(Config):
    hidden: int = Field(1536, ge=1)
    epochs: int = Field(50, ge=1, description="at most; held-out faces say how many")
    patience: int = Field(10, ge=1, description="epochs without a lower held-out loss before training stops")
    lr: float = Field(1e-3, gt=0)
    weight_decay: float = Field(1e-4, ge=0)
    batch_size: int = Field(256, ge=1)
    pseudo_outliers: float = Field(0.05, ge=0, lt=1, description="share of real faces of lowest likelihood")


class ExtractConfig(Config):
    """Features of faces: computed by a pool of Ray actors, and kept."""

    cache: Path | None = Field(None, description="folder that keeps features; None: .features beside the shards")
    batch_size: int = Field(64, ge=1, description="faces in one forward pass")
    actors: int | None = Field(None, ge=1, description="None: one a CPU of the cluster, or one a GPU")
    gpu: bool = False


class OperatingConfig(Config):
    """Where a detector's verdicts begin and end, and how its features are computed."""

    fpr: float = Field(0.05, gt=0, lt=1, description="false-positive rate of the threshold, on the calibration split")
    unsure_fpr: float | None = Field(
        0.10, gt=0, lt=1, description="p-values between fpr and this one get no verdict; None: all get one"
    )
    re_encodings: tuple[str, ...] = Field(
        ("jpeg95", "jpeg75", "resize0.5"),
        description="no verdict for a face on which these disagree; []: none made",
    )
    locator_model: Path | None = Field(None, description="for shards located by yunet or mediapipe: their model file")
    extract: ExtractConfig = ExtractConfig()
    seed: int = 0
    ray: RayConfig = RayConfig()

    @model_validator(mode="after")
    def _band(self) -> "OperatingConfig":
        if self.unsure_fpr is not None and self.unsure_fpr < self.fpr:
            raise ValueError(f"unsure_fpr: {self.unsure_fpr} is below fpr {self.fpr}; the band reaches upwards from it")
        return self

    @field_validator("re_encodings")
    @classmethod
    def _known(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        from blades_dist.perturb import check

        for name in value:
            check(name)
        return value


class CalibrationConfig(OperatingConfig):
    """What turns a head on an encoder's features into a detector."""

    shards: Path = Field(description="shard folder of photographs")
    output: Path = Field(description="folder of the detector bundle")


class FitConfig(CalibrationConfig):
    """Detector on frozen features."""

    kind: Literal["oc", "mahalanobis", "knn", "bc"] = "oc"
    encoder: str = Field(description="encoder folder written by the pretrain or import job, or hf:NAME_OR_FOLDER")
    generated: Path | None = Field(None, description="shard folder of AI faces; bc only")
    generators: list[str] | None = Field(None, description="generators bc may train on; None: all")
    leave_one_out: bool = Field(False, description="bc only: one detector a generator, trained on all the others")
    oc: OneClassConfig = OneClassConfig()
    mahalanobis: MahalanobisConfig = MahalanobisConfig()
    knn: KnnConfig = KnnConfig()
    bc: BinaryConfig = BinaryConfig()

    @model_validator(mode="after")
    def _generated(self) -> "FitConfig":
        if (self.kind == "bc") != (self.generated is not None):
            raise ValueError(
                f"generated: a shard folder of AI faces is needed by kind: bc and not used by kind: {self.kind}"
            )
        if self.leave_one_out and self.kind != "bc":
            raise ValueError(f"leave_one_out: kind {self.kind} sees no AI face, so there is none to leave out")
        return self


Resize = Literal[
    "area",
    "bilinear",
    "bilinear_antialias",
    "pil_nearest",
    "pil_lanczos",
    "pil_bilinear",
    "pil_bicubic",
    "pil_box",
    "pil_hamming",
]


class ImportConfig(OperatingConfig):
    """Published checkpoints to this project's format, and with photographs to a detector."""

    checkpoint: Path = Field(description="file of tensors and plain values: .pth, .pt or .safetensors")
    output: Path = Field(description="folder to write: encoder/, and head.safetensors where the file has a head")
    format: Literal["auto", "blades_oc", "blades_bc", "cnndetection", "univfd", "clip"] = Field(
        "auto", description="layout of the file; auto: told from its names"
    )
    resize: Resize | None = Field(None, description="how crops are resized; None: as docs/imports.md says per format")
    tokenizer: str | None = Field(
        None, description="CLIP tokenizer (folder or hub name); with it released files keep their pretext read-outs"
    )
    generated_column: Literal[0, 1] = Field(1, description="output of a blades_bc perceptron that means AI-generated")
    clip: str | None = Field(None, description="Hugging Face name or folder of the CLIP a univfd head was trained on")
    shards: Path | None = Field(
        None,
        description="shard folder of photographs to calibrate a detector on, written to output/detector",
    )
    oc: OneClassConfig = OneClassConfig()


class EvaluateConfig(Config):
    """Tables, plots and report for any number of detectors side by side."""

    detectors: dict[str, str] = Field(
        description="name to bundle folder, to that of a leave-one-out fit, or to module:function of a scorer of "
        "yours; the first is the main one",
        min_length=1,
    )
    testset: Path | None = Field(
        None, description="folder with real/ and fake/GENERATOR/, or CSV list, instead of shards and generated"
    )
    faces: Literal["located", "whole"] = Field("located", description="testset: whole takes each image as one face")
    shards: Path | None = Field(None, description="shard folder of photographs; its test split is the real side")
    generated: Path | None = Field(None, description="shard folder of AI faces")
    equalise: bool = Field(False, description="bring both sides into one and the same container first")
    quality: int | None = Field(None, ge=1, le=100, description="equalise: JPEG quality; None: what the sides allow")
    output: Path = Field(description="folder of the report")
    history: Path | None = Field(None, description="run folder of the pretrain job, for its weights' trajectories")
    projection: Literal["tsne", "umap"] = "tsne"
    bootstrap: int = Field(2000, ge=100)
    confidence: float = Field(0.95, gt=0.5, lt=1)
    extract: ExtractConfig = ExtractConfig()
    seed: int = 0
    ray: RayConfig = RayConfig()

    @model_validator(mode="after")
    def _one_testset(self) -> "EvaluateConfig":
        pair = self.shards is not None and self.generated is not None
        if pair == (self.testset is not None) or (self.shards is None) != (self.generated is None):
            raise ValueError("testset: give either testset, or both shards and generated")
        return self


class RobustnessConfig(Config):
    """Detectors under compression, resizing, noise and the like."""

    detectors: dict[str, Path] = Field(description="name to bundle folder", min_length=1)
    shards: Path = Field(description="shard folder of photographs; its test split is the real side")
    generated: Path = Field(description="shard folder of AI faces")
    output: Path = Field(description="folder of the report")
    rows: list[str] | None = Field(None, description="rows of the grid; None: all")
    limit: int | None = Field(500, ge=1, description="faces a side, the first in stored order; None: all")
    unsure: bool = Field(True, description="also judge every re-encoding of every cell, for the share without verdict")
    bootstrap: int = Field(1000, ge=100)
    confidence: float = Field(0.95, gt=0.5, lt=1)
    extract: ExtractConfig = ExtractConfig()
    seed: int = 0
    ray: RayConfig = RayConfig()


class ServeConfig(ServiceConfig):
    """HTTP endpoint."""

    ray: RayConfig = RayConfig()
