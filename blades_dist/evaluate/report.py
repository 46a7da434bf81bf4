"""What an evaluation found, as one self-contained HTML page and as JSON: the same numbers in both."""

import html
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypeVar

from markupsafe import Markup
from pydantic import BaseModel, ConfigDict, ValidationError

from blades_dist import page
from blades_dist.evaluate.metrics import Estimate
from blades_dist.evaluate.parity import ALL, LEAK, NOT_AUDITED, Audit, Distribution
from blades_dist.evaluate.tables import RANKING, Assessment, Table, show
from blades_dist.figures import Plot

SCHEMA_VERSION = 1
WEIGHTS = "weights.json"
VALIDATION = "validation.json"


class _File(BaseModel):
    model_config = ConfigDict(extra="ignore", frozen=True)


Content = TypeVar("Content", bound=_File)


class Weights(_File):
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


@dataclass(frozen=True)
class Mistake:
    """A face that its detector places worst; ``picture`` is a JPEG for looking at only."""

    picture: bytes
    source: str
    path: str
    score: float
    p_value: float
    flagged: bool


@dataclass(frozen=True)
class Facts:
    """What is to be known of a detector beside its numbers; ``threshold`` None: calibrated on too few to flag any."""

    kind: str
    threshold: float | None
    nominal_fpr: float
    calibrated_on: int
    bundle: str
    encoder: str
    not_held_out: tuple[str, ...]
    provenance: dict[str, Any]


@dataclass(frozen=True)
class Evaluation:
    """Everything a report is made of; the first detector is the main one."""

    created: str
    simulated: str | None
    photographs: dict[str, int]
    generated: dict[str, int]
    remarks: list[str]
    audit: Audit
    assessments: Mapping[str, Assessment]
    facts: Mapping[str, Facts]
    tables: Sequence[Table]
    confidence: float
    config: dict[str, Any]
    versions: dict[str, str]
    weights: Weights | None = None
    pretext: Pretext | None = None
    plots: Sequence[Plot] = ()
    passed_fakes: Sequence[Mistake] = ()
    doubted_photographs: Sequence[Mistake] = ()

    @property
    def main(self) -> str:
        """Name of the main detector."""
        return next(iter(self.assessments))

    def headline(self) -> str:
        """The one number, in a sentence."""
        mean = self.assessments[self.main].ranked["AUC"].mean(self.confidence)
        known = len(self.assessments[self.main].ranked["AUC"].known)
        return f"{self.main}: AUC {show(mean)}, mean over {known} generator{'s' if known != 1 else ''}"

    def data_sentence(self) -> str:
        """On how many images of which origin; plain about simulated ones."""
        n, m = sum(self.photographs.values()), sum(self.generated.values())
        counted = f"{n} faces from photographs and {m} generated faces of {len(self.generated)} generators"
        if self.simulated:
            return (
                f"Measured on SIMULATED data ({self.simulated}): {counted}. Results on simulated faces say that the "
                "machinery works; they do not say how well it detects the images of real generators."
            )
        return f"Measured on {counted}. Nothing marks them as simulated."


def read_run(folder: Path) -> tuple[Weights, Pretext | None]:
    """Weight trajectories and, if there, pretext accuracies of a pretraining run's folder.

    Raises:
        FileNotFoundError: the folder holds no ``weights.json``.
        ValueError: one of the files is not what it should be.
    """
    if not (folder / WEIGHTS).is_file():
        raise FileNotFoundError(f"{folder / WEIGHTS} is missing: {folder} is not the folder of a pretraining run")
    weights = _read(Weights, folder / WEIGHTS)
    if any(len(values) != len(weights.names) for _, values in weights.history):
        raise ValueError(f"{folder / WEIGHTS}: a step has not {len(weights.names)} weights, one a name")
    return weights, _read(Pretext, folder / VALIDATION) if (folder / VALIDATION).is_file() else None


def _read(kind: type[Content], file: Path) -> Content:
    try:
        return kind.model_validate_json(file.read_text(encoding="utf-8"))
    except (ValidationError, UnicodeDecodeError) as error:
        raise ValueError(f"{file} is not readable as {kind.__name__}: {error}") from None


# JSON ----------------------------------------------------------------------------------------------------------------


def results(evaluation: Evaluation) -> dict[str, Any]:
    """All numbers, as fractions and without rounding; null where one is not defined. Plain JSON types only."""
    plain = {
        "schema_version": SCHEMA_VERSION,
        "created": evaluation.created,
        "headline": evaluation.headline(),
        "confidence": evaluation.confidence,
        "data": {
            "simulated": evaluation.simulated,
            "photographs": evaluation.photographs,
            "generated": evaluation.generated,
            "remarks": evaluation.remarks,
        },
        "audit": _audit_results(evaluation.audit),
        "detectors": {
            name: _assessment_results(found, evaluation.confidence) | {"facts": asdict(evaluation.facts[name])}
            for name, found in evaluation.assessments.items()
        },
        "tables": {
            table.key: [
                {"row": row.label, "cells": dict(zip(table.columns, map(asdict, row.cells), strict=True))}
                for row in table.rows
            ]
            for table in evaluation.tables
        },
        "pretext": evaluation.pretext.model_dump() if evaluation.pretext else None,
        "config": evaluation.config,
        "versions": evaluation.versions,
    }
    return _without_nan(plain)


def _audit_results(audit: Audit) -> dict[str, Any]:
    return {
        "verdict": audit.verdict(),
        "leaking": audit.leaking,
        "certain": audit.certain,
        "threshold": LEAK,
        "container_auc": {name: asdict(estimate) for name, estimate in audit.container_auc.items()},
        "photographs": asdict(audit.real),
        "generators": {name: asdict(side) for name, side in audit.generators.items()},
        "not_audited": list(NOT_AUDITED),
    }


def _assessment_results(found: Assessment, confidence: float) -> dict[str, Any]:
    ranked = {
        metric: {
            "mean": asdict(values.mean(confidence)),
            "generators": {name: asdict(values.estimate(i, confidence)) for i, name in enumerate(found.generators)},
        }
        for metric, values in found.ranked.items()
    }
    rates = {"accuracy": found.accuracy, "detected": found.detected, "confusion": found.confusion}
    plain = {key: {name: asdict(value) for name, value in values.items()} for key, values in rates.items()}
    return {"ranking": {name: ranked[name] for name in RANKING}, **plain}


def _without_nan(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_nan(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_without_nan(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


# HTML ----------------------------------------------------------------------------------------------------------------


def to_html(evaluation: Evaluation) -> str:
    """The report: one page that needs nothing but itself, and runs no script."""
    environment = page.environment("blades_dist.evaluate")
    environment.filters |= {
        "estimate": _estimate,
        "spread": _spread,
        "codecs": _codecs,
        "pretty": _pretty,
    }
    return environment.get_template("report.html.j2").render(
        e=evaluation, audit=evaluation.audit, all=ALL, leak=LEAK, not_audited=NOT_AUDITED
    )


def _pretty(value: Any) -> str:
    return json.dumps(_without_nan(value), indent=1, ensure_ascii=False, default=str)


def _estimate(estimate: Estimate, percent: bool = False, signed: bool = False) -> Markup:
    """The value as shown, with the exact one beside it for whoever reads the page by machine."""
    text = show(estimate, percent, signed)
    if math.isnan(estimate.value):
        return Markup('<span class="none">n/a</span>')
    value, _, bounds = text.partition(" ")
    exact = html.escape(repr(float(estimate.value)))
    return Markup(f'<data value="{exact}">{html.escape(value)}</data> <small>{html.escape(bounds)}</small>')


def _spread(side: Distribution, name: str) -> str:
    found = side.quantiles[name]
    if found is None:
        return "none"
    low, _, median, _, high = (f"{value:.0f}" for value in found)
    return low if low == high else f"{low} / {median} / {high}"


def _codecs(side: Distribution) -> str:
    return ", ".join(f"{name} {100 * count / side.n:.0f}%" for name, count in side.codecs.items())
