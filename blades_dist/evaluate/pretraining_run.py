"""What a pretraining run left in its folder that belongs into a report."""

from pathlib import Path
from typing import TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError

WEIGHTS = "weights.json"
VALIDATION = "validation.json"


class _File(BaseModel):
    model_config = ConfigDict(extra="ignore", frozen=True)


Content = TypeVar("Content", bound=_File)


class WeightHistory(_File):
    """``weights.json`` of a pretraining run: (step, K weights) for the K named tasks."""

    names: list[str]
    history: list[tuple[int, list[float]]]


class CoarseAuc(_File):
    """AUC of telling manipulated from photographic faces."""

    value: float | None
    low: float | None
    high: float | None
    n: int


class TaskAccuracy(_File):
    """Accuracy of one EXIF task, and that of always naming the most frequent class."""

    accuracy: float | None
    low: float | None
    high: float | None
    majority: float | None
    n: int


class Pretext(_File):
    """``validation.json`` of a pretraining run."""

    coarse_auc: CoarseAuc
    tasks: dict[str, TaskAccuracy]


def read_run(folder: Path) -> tuple[WeightHistory, Pretext | None]:
    """Weight trajectories and, if there, pretext accuracies of a pretraining run's folder.

    Raises:
        FileNotFoundError: the folder holds no ``weights.json``.
        ValueError: one of the files is not what it should be.
    """
    if not (folder / WEIGHTS).is_file():
        raise FileNotFoundError(f"{folder / WEIGHTS} is missing: {folder} is not the folder of a pretraining run")
    weights = _read(WeightHistory, folder / WEIGHTS)
    if any(len(values) != len(weights.names) for _, values in weights.history):
        raise ValueError(f"{folder / WEIGHTS}: a step has not {len(weights.names)} weights, one a name")
    return weights, _read(Pretext, folder / VALIDATION) if (folder / VALIDATION).is_file() else None


def _read(kind: type[Content], file: Path) -> Content:
    try:
        return kind.model_validate_json(file.read_text(encoding="utf-8"))
    except (ValidationError, UnicodeDecodeError) as error:
        raise ValueError(f"{file} is not readable as {kind.__name__}: {error}") from None
