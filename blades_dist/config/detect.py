"""Fitting, calibrating and importing detectors."""

from pathlib import Path
from typing import Literal

from pydantic import Field, field_validator, model_validator

from blades_dist.config.cluster import GpuShare, RayConfig
from blades_dist.settings import Config

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
    actors: int | None = Field(None, ge=1, description="None: one a CPU of the cluster, or as many as its GPUs hold")
    gpu: GpuShare = 0.0


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
