"""Pretraining."""

import math
from pathlib import Path
from typing import Any, Literal
from urllib.parse import urlsplit

from pydantic import Field, field_validator, model_validator

from blades_dist.config.cluster import RayConfig
from blades_dist.config.data import StreamConfig
from blades_dist.config.model import ModelConfig
from blades_dist.settings import Config

MLFLOW_SCHEMES = ("http", "https", "sqlite", "postgresql", "mysql", "mssql")
SinkName = Literal["tensorboard", "mlflow", "wandb"]
Precision = Literal["fp32", "tf32", "bf16"]


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
    val_batch: int | None = Field(
        None,
        ge=2,
        description="validation photographs of an outer step, over all workers; None: as many as a micro-batch trains "
        "on. v is a stochastic gradient: a quarter of them makes an outer step cheaper and lambda noisier",
    )
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
    precision: Precision = Field(
        "fp32",
        description="on a GPU fp32: IEEE fp32, convolutions too; tf32: products of fp32 numbers in TF32; "
        "bf16: forwards under autocast, all else in fp32. finite_difference and features are IEEE fp32 in any case",
    )
    cuda_graphs: Literal["auto", "on", "off"] = Field(
        "auto",
        description="a step's device work as CUDA graphs, recorded once: auto: on one GPU with zero_stage 0 and a "
        "model that is not compiled; on: an error where that is not so; off: as written",
    )
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

    @property
    def val_batch(self) -> int:
        """Validation photographs of an outer step over all workers, however many there are."""
        return self.bilevel.val_batch or self.train.global_batch

    @model_validator(mode="after")
    def _val_shares(self) -> "PretrainConfig":
        least, most = self.train.worker_range
        uneven = [count for count in range(least, most + 1) if self.val_batch % count]
        if uneven:
            whole = math.lcm(*range(least, most + 1))
            raise ValueError(
                f"bilevel.val_batch: {self.val_batch} photographs cannot be shared evenly by "
                f"{', '.join(map(str, uneven))} workers (train.workers); take a multiple of {whole}"
            )
        return self

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
