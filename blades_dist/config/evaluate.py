"""Evaluation and the robustness grid."""

from pathlib import Path
from typing import Literal

from pydantic import Field, model_validator

from blades_dist.config.cluster import RayConfig
from blades_dist.config.detect import ExtractConfig
from blades_dist.settings import Config


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
