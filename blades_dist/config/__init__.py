"""One typed configuration per stage; ``settings`` reads them from YAML with dotted overrides.

A preset file holds one section per stage (``ingest``, ``pretrain``, ``fit``, ``evaluate``, ``serve`` ...); each
job reads its own section, so one file describes a whole run. Unknown keys are errors.
"""

from blades_dist.config.cluster import RayConfig
from blades_dist.config.data import SPLITS, IngestConfig, SimulateConfig, StreamConfig
from blades_dist.config.detect import (
    CalibrationConfig,
    ExtractConfig,
    FitConfig,
    ImportConfig,
    OperatingConfig,
    Resize,
)
from blades_dist.config.evaluate import EvaluateConfig, RobustnessConfig
from blades_dist.config.heads import HeadConfig, KnnConfig, MahalanobisConfig, MixtureConfig, PerceptronConfig
from blades_dist.config.inference import ExportConfig, PredictConfig
from blades_dist.config.model import ImageTowerConfig, ModelConfig, TextTowerConfig
from blades_dist.config.serve import ServeConfig
from blades_dist.config.training import (
    MLFLOW_SCHEMES,
    BilevelConfig,
    GuardConfig,
    LossConfig,
    ManipulateConfig,
    Precision,
    PretrainConfig,
    SinkName,
    SinksConfig,
    TrainConfig,
)

__all__ = [
    "MLFLOW_SCHEMES",
    "SPLITS",
    "BilevelConfig",
    "CalibrationConfig",
    "EvaluateConfig",
    "ExportConfig",
    "ExtractConfig",
    "FitConfig",
    "GuardConfig",
    "HeadConfig",
    "ImageTowerConfig",
    "ImportConfig",
    "IngestConfig",
    "KnnConfig",
    "LossConfig",
    "MahalanobisConfig",
    "ManipulateConfig",
    "MixtureConfig",
    "ModelConfig",
    "OperatingConfig",
    "PerceptronConfig",
    "Precision",
    "PredictConfig",
    "PretrainConfig",
    "RayConfig",
    "Resize",
    "RobustnessConfig",
    "ServeConfig",
    "SimulateConfig",
    "SinkName",
    "SinksConfig",
    "StreamConfig",
    "TextTowerConfig",
    "TrainConfig",
]
