"""What an evaluation found, as one self-contained HTML page and as JSON: the same numbers in both."""

import html
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from markupsafe import Markup

from blades_dist import page
from blades_dist.evaluate.assess import RANKING, Assessment
from blades_dist.evaluate.calibration_error import Reliability
from blades_dist.evaluate.parity import ALL, LEAK, Audit, Distribution
from blades_dist.evaluate.pretraining_run import Pretext, Weights
from blades_dist.evaluate.rates import Estimate
from blades_dist.evaluate.table_formats import SIGNED, Cell, PValue, Table, show
from blades_dist.figures import Plot

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
    remarks: list[str]
    audit: Audit
    assessments: Mapping[str, Assessment]
    facts: Mapping[str, Facts]
    tables: Sequence[Table]
    confidence: float
    config: dict[str, Any]
    versions: dict[str, str]
    audit_before: Audit | None = None
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
    return page.without_nan(plain)


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
    environment = page.environment("blades_dist.evaluate")
    environment.filters |= {
        "cell": cell,
        "spread": _spread,
        "counts": _counts,
        "words": _words,
    }
    return environment.get_template("report.html.j2").render(
        e=evaluation,
        audit=evaluation.audit,
        all=ALL,
        leak=LEAK,
        not_audited=evaluation.audit.not_audited,
        signed=SIGNED,
    )


def cell(found: Cell, percent: bool = False, signed: bool = False) -> Markup:
    """The value as shown, with the exact one beside it for whoever reads the page by machine."""
    text = show(found, percent, signed)
    if math.isnan(found.value):
        return Markup('<span class="none">n/a</span>')
    exact = html.escape(repr(float(found.value)))
    if isinstance(found, PValue):
        return Markup(f'<data value="{exact}">{html.escape(text)}</data>')
    value, _, bounds = text.partition(" ")
    return Markup(f'<data value="{exact}">{html.escape(value)}</data> <small>{html.escape(bounds)}</small>')


def _spread(side: Distribution, name: str) -> str:
    found = side.quantiles[name]
    if found is None:
        return "none"
    low, _, median, _, high = (f"{value:.0f}" for value in found)
    return low if low == high else f"{low} / {median} / {high}"


def _counts(counts: Mapping[str, int], n: int, shown: int = 3) -> str:
    """The most frequent values with their shares, and how many others there are."""
    if not counts:
        return "none"
    ordered = sorted(counts.items(), key=lambda item: -item[1])
    named = [f"{_short(name)} {100 * count / n:.0f}%" for name, count in ordered[:shown]]
    rest = ordered[shown:]
    others = [f"{len(rest)} more {100 * sum(count for _, count in rest) / n:.0f}%"] if rest else []
    return ", ".join([*named, *others])


def _short(name: str) -> str:
    return name if len(name) <= 20 else name[:17] + "…"  # digests are told apart by their beginning


def _words(name: str) -> str:
    """A recorded fact's name for people."""
    words = name.replace("_", " ").replace("jpeg", "JPEG").replace("icc", "ICC")
    return f"{words}, px" if words.endswith(("width", "height")) else words
