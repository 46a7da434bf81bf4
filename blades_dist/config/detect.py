"""Fitting, calibrating and importing detectors."""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

from pydantic import ConfigDict, Field, PlainValidator, SerializeAsAny, field_validator, model_validator
from pydantic_core import PydanticKnownError

from blades_dist.config.cluster import GpuShare, RayConfig
from blades_dist.config.heads import SECTIONS, HeadConfig, MixtureConfig
from blades_dist.settings import Config, present

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
        from blades_dist.perturb import check_spec

        for name in value:
            check_spec(name)
        return value


class CalibrationConfig(OperatingConfig):
    """What turns a head on an encoder's features into a detector."""

    shards: Path = Field(description="shard folder of photographs")
    output: Path = Field(description="folder of the detector bundle")


class _Section(NamedTuple):
    """A section on its way to its model: which kind's, and what was given for it."""

    kind: str
    given: Any


def _read_section(value: Any) -> HeadConfig:
    if not isinstance(value, _Section):
        raise PydanticKnownError("extra_forbidden")
    return SECTIONS[value.kind].model_validate(value.given)


class FitConfig(CalibrationConfig):
    """Detector on frozen features.

    Beside the keys below there is a section for every kind of head in ``SECTIONS``, named like the kind: that of
    ``kind`` says how it is fitted, and ``oc`` also how the pseudo-outliers of ``bc`` are found.
    """

    model_config = ConfigDict(extra="allow")  # the sections; nothing else passes _read_section
    __pydantic_extra__: dict[str, Annotated[SerializeAsAny[HeadConfig], PlainValidator(_read_section)]]

    kind: str = Field("oc", description="kind of head: oc, mahalanobis, knn or bc")
    encoder: str = Field(description="encoder folder written by the pretrain or import job, or hf:NAME_OR_FOLDER")
    generated: Path | None = Field(None, description="shard folder of AI faces, for kinds that need them")
    generators: list[str] | None = Field(None, description="generators that a head may train on; None: all")
    leave_one_out: bool = Field(False, description="one detector a generator, trained on all the others")

    def section(self, kind: str | None = None) -> HeadConfig:
        """The section of a kind of head; None: of the kind that is fitted."""
        return self.__pydantic_extra__[kind or self.kind]

    @classmethod
    def sections(cls) -> dict[str, type[Config]]:
        return super().sections() | SECTIONS

    @model_validator(mode="before")
    @classmethod
    def _sections(cls, values: Any) -> Any:
        """Every section is there, at its defaults where nothing is given for it."""
        if not isinstance(values, Mapping):
            return values
        given = present(cls, values)  # before Config does it, which cannot look into a _Section
        return {**given, **{kind: _Section(kind, given.get(kind, {})) for kind in SECTIONS}}

    @field_validator("kind")
    @classmethod
    def _known_kind(cls, value: str) -> str:
        if value not in SECTIONS:
            raise ValueError(f"no kind of head that can be fitted; known: {', '.join(SECTIONS)}")
        return value

    @model_validator(mode="after")
    def _generated(self) -> "FitConfig":
        needed = SECTIONS[self.kind].needs_generated
        if needed != (self.generated is not None):
            needing = ", ".join(kind for kind, section in SECTIONS.items() if section.needs_generated)
            raise ValueError(
                f"generated: a shard folder of AI faces is needed by kind: {needing} and not used by kind: {self.kind}"
            )
        if self.leave_one_out and not needed:
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
    oc: MixtureConfig = Field(MixtureConfig(), description="the mixture to fit where the file has no head")
