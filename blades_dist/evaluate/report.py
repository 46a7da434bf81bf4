"""What an evaluation found, as one self-contained HTML page and as JSON: the same numbers in both."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from blades_dist.evaluate.assess import RANKING, Assessment
from blades_dist.evaluate.calibration_error import Reliability
from blades_dist.evaluate.page_tables import container_table, pretext_table
from blades_dist.evaluate.parity import LEAK, Audit
from blades_dist.evaluate.pretraining_run import Pretext, WeightHistory
from blades_dist.evaluate.rates import Estimate
from blades_dist.evaluate.table_formats import show
from blades_dist.report.figures import Plot
from blades_dist.report.page import render, without_nan
from blades_dist.report.tables import Table, html_number

SCHEMA_VERSION = 2


@dataclass(frozen=True)
class Mistake:
    """A face that its detector places worst; ``picture`` is a JPEG for looking at only."""

    picture: bytes
    source: str
    path: str
    score: float
    p_value: float | None
    flagged: bool
    unsure: bool


@dataclass(frozen=True)
class Facts:
    """What is to be known of a detector beside its numbers.

    Attributes:
        kind: in words.
        threshold: of its scores; None: there is none that holds for all, ``note`` says why.
        nominal_fpr, calibrated_on: what its operating point promises, from how many photographs; None: nothing.
        bundle: where it came from, with its identity.
        encoder: identity of what computed its features.
        not_held_out: generators of this test that it was trained on.
        note: a sentence on how to read its numbers, such as that it was judged leaving one generator out.
        training: figures of its training worth a look, name to text.
        provenance: everything that is recorded of its making, plain JSON values.
    """

    kind: str
    threshold: float | None
    nominal_fpr: float | None
    calibrated_on: int | None
    bundle: str
    encoder: str
    not_held_out: tuple[str, ...]
    provenance: dict[str, Any]
    note: str = ""
    training: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Evaluation:
    """Everything a report is made of; the first detector is the main one.

    ``audit`` is of what was evaluated; ``audit_before`` of the test set before both sides were re-encoded alike, None
    where they were not.
    """

    created: str
    simulated: str | None
    photographs: dict[str, int]
    generated: dict[str, int]
    caveats: list[str]
    audit: Audit
    assessments: Mapping[str, Assessment]
    facts: Mapping[str, Facts]
    tables: Sequence[Table]
    confidence: float
    config: dict[str, Any]
    versions: dict[str, str]
    audit_before: Audit | None = None
    weights: WeightHistory | None = None
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
            "remarks": evaluation.caveats,
        },
        "audit": audit_results(evaluation.audit),
        "audit_before": audit_results(evaluation.audit_before) if evaluation.audit_before else None,
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
    return without_nan(plain)


def audit_results(audit: Audit) -> dict[str, Any]:
    """An audit's numbers as plain JSON types."""
    return {
        "verdict": audit.verdict(),
        "leaking": audit.leaking,
        "certain": audit.certain,
        "threshold": LEAK,
        "container_auc": {name: asdict(estimate) for name, estimate in audit.container_auc.items()},
        "photographs": asdict(audit.real),
        "generators": {name: asdict(side) for name, side in audit.generators.items()},
        "not_audited": list(audit.not_audited),
    }


def _assessment_results(found: Assessment, confidence: float) -> dict[str, Any]:
    ranked = {
        metric: {
            "mean": asdict(values.mean(confidence)),
            "generators": {name: asdict(values.estimate(i, confidence)) for i, name in enumerate(found.generators)},
        }
        for metric, values in found.ranked.items()
    }
    return {
        "own_heads": found.own_heads,
        "ranking": {name: ranked[name] for name in RANKING},
        "accuracy": {"mean": asdict(found.mean_accuracy), "generators": _plain(found.accuracy)},
        "detected": _plain(found.detected),
        "confusion": _plain(found.confusion),
        "unsure": {
            "mean": asdict(found.mean_unsure),
            "photographs": asdict(found.unsure_photographs),
            "generators": _plain(found.unsure),
        },
        "called": {
            "photographs": asdict(found.called_photographs),
            "generators": _plain(found.called),
        },
        "probability": _reliability_results(found.reliability) if found.reliability else None,
        "p_values": {
            "largest_error": asdict(found.p_error),
            "fpr": {f"{nominal:g}": asdict(rate) for nominal, rate in found.fpr.items()},
        }
        if found.p_error
        else None,
    }


def _reliability_results(found: Reliability) -> dict[str, Any]:
    bins = {name: getattr(found, name).tolist() for name in ("predicted", "observed", "low", "high", "weight")}
    return {"ece": asdict(found.ece), "brier": asdict(found.brier), "bins": bins}


def _plain(estimates: Mapping[str, Estimate]) -> dict[str, Any]:
    return {name: asdict(value) for name, value in estimates.items()}


# HTML ----------------------------------------------------------------------------------------------------------------


def to_html(evaluation: Evaluation) -> str:
    """The report: one page that needs nothing but itself, and runs no script."""
    before, pretext = evaluation.audit_before, evaluation.pretext
    now = "Containers as evaluated" if before else "Containers side by side"
    span = "(minimum / median / maximum)"
    links = {"results": "Results", "audit": "Container audit"}
    links |= {"plots": "Plots"} if any(plot.detector is None for plot in evaluation.plots) else {}
    links |= {"detectors": "Detectors", "mistakes": "Worst mistakes"}
    links |= {"pretext": "Pretext tasks"} if pretext else {}
    return render(
        "blades_dist.evaluate",
        "report.html.j2",
        e=evaluation,
        audit=evaluation.audit,
        leak=LEAK,
        links=links | {"data": "Data and versions"},
        containers=container_table(evaluation.audit, f"{now} {span}"),
        containers_before=container_table(before, f"Containers before re-encoding {span}") if before else None,
        pretext=pretext_table(pretext) if pretext else None,
        number=lambda found: html_number(found, show(found, percent=True)),
    )
