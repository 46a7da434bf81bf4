"""Jobs that apply a finished detector: predict and export_onnx."""

from pathlib import Path
from typing import Literal

from pydantic import Field

from blades_dist.settings import Config


class PredictConfig(Config):
    """A verdict for every face of an image or folder."""

    detector: Path = Field(description="bundle folder written by jobs/fit_detector.py")
    target: Path = Field(description="an image file, or a folder of them")
    fpr: float | None = Field(None, gt=0, lt=1, description="false-positive rate to judge at; None: the detector's own")
    faces: Literal["locate", "crop"] = Field("locate", description="crop: each image is one face")
    max_pixels: int = Field(100_000_000, ge=1)
    max_bytes: int = Field(64 * 2**20, ge=1)


class ExportConfig(Config):
    """Encoder and head of a detector as one ONNX graph, checked against torch."""

    detector: Path = Field(description="bundle folder written by jobs/fit_detector.py")
    output: Path = Field(description="the ONNX file")
