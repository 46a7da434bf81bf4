"""Configuration of a sweep: two searches, what they maximise, and how much may run at once."""

from pathlib import Path
from typing import Any, Literal

from pydantic import Field, field_validator, model_validator

from blades_dist.config import FitConfig, ManipulateConfig, PretrainConfig, RayConfig
from blades_dist.config.heads import SECTIONS, one_class
from blades_dist.settings import Config, ConfigError, present_key, validate
from blades_dist.tuning.space import Dimension, Space, get, put

TEST = "test"  # the split that no trial sees


class BaseDetector(FitConfig):
    """The default detector; encoder, shards and output are set by the sweep."""

    encoder: str = ""
    shards: Path = Path()
    output: Path = Path()

    @field_validator("kind")
    @classmethod
    def _one_class(cls, value: str) -> str:
        if value not in one_class():
            raise ValueError(f"a sweep compares detectors that see no AI face: {', '.join(one_class())}")
        return value


def default_space() -> dict[str, Any]:
    """Every kind of head that sees no AI face, with what its section says a sweep may try."""
    own = {f"{kind}.{key}": given for kind in one_class() for key, given in SECTIONS[kind].search.items()}
    return {"kind": one_class(), "fpr": [0.01, 0.02, 0.05, 0.1], **own}


def _present_keys(stage: type[Config], space: Any) -> Any:
    return {present_key(stage, key): item for key, item in space.items()} if isinstance(space, dict) else space


class EncoderSearch(Config):
    """Encoder trials: each is a Ray Train run."""

    candidates: int = Field(8, ge=1, description="configurations beside the default one; population: its size")
    seeds: int = Field(1, ge=1, description="runs a configuration, with train.seed, train.seed + 1, ...")
    space: Space = Field(
        {
            "train.lr": {"low": 1e-6, "high": 1e-3, "log": True},
            "bilevel.lr": {"low": 1e-5, "high": 1e-1, "log": True},
            "bilevel.initial.face_coarse": {"low": 0.3, "high": 3.0, "log": True},
            "bilevel.route": ["exact", "alternating"],
            "manipulate.warp_strength": {"low": 0.02, "high": 0.12},
            "data.jitter": {"low": 0.0, "high": 0.15},
        },
        description="key of the pretrain configuration to a range or a list of choices",
        validate_default=True,
    )
    scheduler: Literal["asha", "population", "none"] = "asha"
    validate_every: int = Field(100, ge=1, description="steps between the read-outs that stopping rests on")
    grace: int = Field(200, ge=1, description="asha: steps that every run may take")
    reduction: float = Field(3.0, gt=1, description="asha: of so many runs at a rung about one goes on")
    generations: int = Field(4, ge=2, description="population: parts of a run, between which weights are copied")
    exploit: float = Field(0.25, gt=0, le=0.5, description="population: share that is replaced by copies of the best")
    resample: float = Field(0.25, ge=0, le=1, description="population: chance that a copied value is drawn anew")

    @field_validator("space", mode="before")
    @classmethod
    def _keys(cls, value: Any) -> Any:
        return _present_keys(PretrainConfig, value)

    @model_validator(mode="after")
    def _population(self) -> "EncoderSearch":
        if self.scheduler == "population":
            if self.seeds > 1:
                raise ValueError("seeds: members of a population exchange weights; repeat the sweep for more seeds")
            if self.candidates < 2:
                raise ValueError("candidates: a population has at least two members")
            still = [key for key in self.space if key.startswith("bilevel.initial")]
            if still:
                raise ValueError(f"space: {', '.join(still)}: copied weights bring their own lambda; leave it out")
        return self


class DetectorSearch(Config):
    """Detector trials on the cached features of every finished encoder configuration."""

    trials: int = Field(40, ge=1, description="a configuration of the encoder; the default detector is one of them")
    encoders: int | None = Field(None, ge=1, description="best configurations that are searched on; None: all finished")
    space: Space = Field(
        default_factory=default_space,
        description="key of the fit configuration to a range or a list of choices",
        validate_default=True,
    )

    @field_validator("space", mode="before")
    @classmethod
    def _keys(cls, value: Any) -> Any:
        return _present_keys(FitConfig, value)


class Weights(Config):
    """What the self-supervised objective is a mean of; docs/tuning.md defines the terms. Each lies in 0..1."""

    proxy: float = Field(1.0, ge=0, description="AUC of the encoder's own coarse task")
    separation: float = Field(1.0, ge=0, description="AUC of the detector's score, photographs against manipulated")
    likelihood: float = Field(0.25, ge=0, description="held-out likelihood against one Gaussian's, squashed")
    operating: float = Field(0.25, ge=0, description="balanced accuracy at the operating point")

    @model_validator(mode="after")
    def _some(self) -> "Weights":
        if not any(self.model_dump().values()):
            raise ValueError("every weight is 0: nothing to maximise")
        return self


class Objective(Config):
    kind: Literal["self_supervised", "supervised"] = "self_supervised"
    weights: Weights = Weights()
    metric: Literal["auc", "balanced_accuracy", "tpr"] = Field(
        "auc", description="supervised: mean over generators of this; tpr: at fit.fpr"
    )
    reference: ManipulateConfig = Field(
        ManipulateConfig(photographic_share=0.0),
        description="manipulations that every trial is measured on, whatever it was trained on",
    )
    limit: int | None = Field(4000, ge=100, description="faces of a split that a trial is measured on; None: all")


class SweepConfig(Config):
    """Search for an encoder and a detector: Ray Train runs inside Ray Tune, Optuna as searcher."""

    name: str = Field("sweep", pattern=r"^[A-Za-z0-9._-]+$", description="the same name resumes the sweep")
    storage: Path = Field(Path("runs"), description="everything is written to storage/name")
    pretrain: PretrainConfig = Field(description="the default encoder; its name and storage are set by the sweep")
    fit: BaseDetector = Field(default_factory=BaseDetector)
    encoders: EncoderSearch = EncoderSearch()
    detectors: DetectorSearch = Field(default_factory=DetectorSearch)
    objective: Objective = Objective()
    generated: Path | None = Field(None, description="shard folder of AI faces; its test split is for the final table")
    generated_split: Literal["train", "val", "calibration"] = Field(
        "train", description="objective supervised: the labelled validation set"
    )
    concurrent: int | None = Field(None, ge=1, description="encoder runs at a time at most; None: what fits")
    driver_cpus: float = Field(0.01, gt=0, description="logical CPUs of the function that drives one encoder run")
    bootstrap: int = Field(2000, ge=100)
    seed: int = 0
    ray: RayConfig = RayConfig()

    @property
    def folder(self) -> Path:
        return self.storage / self.name

    @model_validator(mode="after")
    def _fits(self) -> "SweepConfig":
        if self.objective.kind == "supervised":
            if self.generated is None:
                raise ValueError("generated: objective supervised needs a shard folder of AI faces")
            if self.objective.metric == "tpr" and "fpr" in self.detectors.space:
                raise ValueError("detectors.space: metric tpr would take the largest fpr; leave fpr out")
        if not isinstance(self.pretrain.train.workers, int):
            raise ValueError("pretrain.train.workers: runs side by side need a fixed number each; give one number")
        if self.encoders.scheduler == "population" and self.pretrain.train.schedule != "constant":
            raise ValueError(
                "pretrain.train.schedule: a population trains in parts that are not known beforehand, which a cosine "
                "cannot end with; set constant"
            )
        for section, base, space in (
            ("encoders", self.pretrain, self.encoders.space),
            ("detectors", self.fit, self.detectors.space),
        ):
            for key, dimension in space.items():
                for value in dimension.ends():
                    try:
                        applied(base, {key: value})
                    except ConfigError as error:
                        raise ValueError(f"{section}.space: {key}: {error}") from None
        return self


def applied(base: Any, values: dict[str, Any]) -> Any:
    """A configuration with dotted keys set to ``values``, validated anew.

    ``bilevel.initial.TASK`` sets the start weight of one task where the configuration has one number for all.

    Raises:
        ConfigError: an unknown key, or a value that is not allowed.
    """
    plain = base.model_dump()
    for key, value in values.items():
        if key.startswith("bilevel.initial.") and not isinstance(plain["bilevel"]["initial"], dict):
            plain["bilevel"]["initial"] = _by_task(base)
        put(plain, key, value)
    return validate(type(base), plain)


def defaults(base: Any, space: dict[str, Dimension]) -> dict[str, Any]:
    """What a configuration has for the keys of a space."""
    plain = base.model_dump(mode="json")
    if "bilevel" in plain:
        plain["bilevel"]["initial"] = _by_task(base)
    return {key: get(plain, key) for key in space}


def _by_task(base: PretrainConfig) -> dict[str, float]:
    from blades_dist.tasks import task_set

    names, initial = task_set(flash=base.loss.flash).names, base.bilevel.initial
    if isinstance(initial, dict):
        return dict(initial)
    return dict(zip(names, initial if isinstance(initial, list) else [initial] * len(names), strict=True))
