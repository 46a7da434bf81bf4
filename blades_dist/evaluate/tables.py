"""The tables of an evaluation: what is in them, and how they read as Markdown, CSV, LaTeX and text."""

import csv
import io
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from blades_dist.evaluate.metrics import (
    Estimate,
    Ranked,
    auc,
    average_precision,
    balanced_accuracy,
    confusion,
    difference,
    equal_error_rate,
    rank,
    rate,
    tpr_at,
)

RANKING = {
    "AUC": auc,
    "AP": average_precision,
    "EER": equal_error_rate,
    "TPR at 1% FPR": tpr_at(0.01),
    "TPR at 5% FPR": tpr_at(0.05),
}
MEAN = "mean"


@dataclass(frozen=True)
class Assessment:
    """Everything that is measured of one detector on one test set.

    ``ranked`` holds one entry a name of ``RANKING``; the dictionaries are by generator, ``accuracy`` with the mean.
    """

    generators: tuple[str, ...]
    ranked: dict[str, Ranked]
    accuracy: dict[str, Estimate]
    detected: dict[str, Estimate]
    confusion: dict[str, Estimate]


@dataclass(frozen=True)
class Row:
    """``cells`` has one estimate a column; ``images`` says on how many it rests, alike for all of them."""

    label: str
    images: str
    cells: tuple[Estimate, ...]


@dataclass(frozen=True)
class Table:
    """``percent`` tells how values are shown; estimates are always kept as fractions."""

    key: str
    title: str
    note: str
    columns: tuple[str, ...]
    rows: tuple[Row, ...]
    percent: bool


def assess(
    real: np.ndarray,
    generated: Mapping[str, np.ndarray],
    real_flags: np.ndarray,
    generated_flags: Mapping[str, np.ndarray],
    resamples: int = 2000,
    confidence: float = 0.95,
    seed: int = 0,
) -> Assessment:
    """Scores (n,), larger = more like a photograph, and flags (n,), True = called AI-generated, into measurements.

    Raises:
        ValueError: a score is not finite.
    """
    names = tuple(generated)
    ranked = rank(list(RANKING.values()), real, list(generated.values()), resamples, seed)
    flags = [np.asarray(generated_flags[name], bool) for name in names]
    accuracy = {name: balanced_accuracy(real_flags, [one], confidence) for name, one in zip(names, flags, strict=True)}
    pooled = np.concatenate([np.zeros(0, bool), *flags])
    return Assessment(
        generators=names,
        ranked=dict(zip(RANKING, ranked, strict=True)),
        accuracy=accuracy | {MEAN: balanced_accuracy(real_flags, flags, confidence)},
        detected={n: rate(int(one.sum()), len(one), False, confidence) for n, one in zip(names, flags, strict=True)},
        confusion=confusion(np.asarray(real_flags, bool), pooled, confidence, seed),
    )


def build_tables(assessments: Mapping[str, Assessment], confidence: float = 0.95) -> list[Table]:
    """Tables 1 to 4 over all detectors, and the comparison of the first with each other one when there are more."""
    tables = [
        _accuracy_table(assessments),
        _auc_table(assessments, confidence),
        _rates_table(assessments),
        _ranking_table(assessments, confidence),
    ]
    return tables + ([_comparison_table(assessments, confidence)] if len(assessments) > 1 else [])


def _accuracy_table(assessments: Mapping[str, Assessment]) -> Table:
    generators = next(iter(assessments.values())).generators
    rows = [_row(name, [a.accuracy[name] for a in assessments.values()]) for name in (*generators, MEAN)]
    note = (
        "Balanced accuracy at the bundle's own threshold: half the share of photographs passed plus half the share of "
        "that generator's images flagged, so that it does not depend on the sizes of the two sides. The mean is over "
        "generators. Intervals: Wilson, joined by square and add."
    )
    return Table("table1", "Table 1. Accuracy per generator, %", note, tuple(assessments), tuple(rows), True)


def _auc_table(assessments: Mapping[str, Assessment], confidence: float) -> Table:
    generators = next(iter(assessments.values())).generators
    ranked = [a.ranked["AUC"] for a in assessments.values()]
    rows = [_row(name, [r.estimate(i, confidence) for r in ranked]) for i, name in enumerate(generators)]
    rows.append(_row(MEAN, [r.mean(confidence) for r in ranked]))
    note = (
        "Area under the ROC curve of each generator against all photographs; 0.5 is chance, below 0.5 means that the "
        "generator's images score as more photographic than photographs. The mean is over generators. Intervals: "
        "stratified percentile bootstrap, the photographs drawn once for all generators."
    )
    return Table("table2", "Table 2. AUC per generator", note, tuple(assessments), tuple(rows), False)


def _rates_table(assessments: Mapping[str, Assessment]) -> Table:
    rows = [_row(name, [a.confusion[name] for a in assessments.values()]) for name in ("TNR", "FPR", "TPR", "FNR")]
    rows.append(_row("F1", [a.confusion["F1"] for a in assessments.values()]))
    note = (
        "At the bundle's own threshold, all generators together; positive = AI-generated, so TNR and FPR are shares of "
        "photographs, TPR and FNR of generated images. F1 depends on the numbers of images on the two sides. "
        "Intervals: Wilson; for F1 from the Jeffreys distributions of the two rates."
    )
    return Table("table3", "Table 3. Decisions, %", note, tuple(assessments), tuple(rows), True)


def _ranking_table(assessments: Mapping[str, Assessment], confidence: float) -> Table:
    names = [name for name in RANKING if name != "AUC"]
    rows = [_row(name, [a.ranked[name].mean(confidence) for a in assessments.values()]) for name in names]
    note = (
        "Means over generators. AP: average precision, which depends on the numbers of images on the two sides. EER: "
        "equal error rate. TPR at x% FPR: over thresholds of this test set, so it describes the scores, not the "
        "bundle's threshold. Intervals: bootstrap as in table 2."
    )
    return Table("table4", "Table 4. Ranking measures, %", note, tuple(assessments), tuple(rows), True)


def _comparison_table(assessments: Mapping[str, Assessment], confidence: float) -> Table:
    (main, first), *others = assessments.items()
    rows = []
    for name, other in others:
        a, b = first.ranked["AUC"], other.ranked["AUC"]
        cells = [a.mean(confidence), b.mean(confidence), difference(a, b, confidence)]
        rows.append(_row(f"{main} against {name}", cells))
    note = (
        "Mean AUC over generators. The difference is paired: both detectors on the same resampled images, so its "
        "interval is narrower than the two separate ones suggest; one that holds 0 does not tell them apart."
    )
    return Table("comparison", "Paired comparison", note, (f"{main}", "other", "difference"), tuple(rows), False)


def _row(label: str, cells: Sequence[Estimate]) -> Row:
    return Row(label, images(cells[0]), tuple(cells))


# Reading forms -------------------------------------------------------------------------------------------------------


def images(estimate: Estimate) -> str:
    """Numbers of images as "photographs + generated", or the one side that counts."""
    real, generated = estimate.n_real, estimate.n_generated
    return f"{real} + {generated}" if real and generated else f"{real} + 0" if real else f"0 + {generated}"


def show(estimate: Estimate, percent: bool = False, signed: bool = False) -> str:
    """ "0.873 [0.850, 0.901]", in percent "87.3 [85.0, 90.1]"; "n/a" where there is no value or no interval."""
    sign = "+" if signed else ""

    def number(value: float) -> str:
        return "n/a" if math.isnan(value) else f"{100 * value:{sign}.1f}" if percent else f"{value:{sign}.3f}"

    if math.isnan(estimate.value):
        return "n/a"
    bounds = "n/a" if math.isnan(estimate.low) else f"{number(estimate.low)}, {number(estimate.high)}"
    return f"{number(estimate.value)} [{bounds}]"


def grid(table: Table) -> tuple[list[str], list[list[str]]]:
    """Header and rows as shown: label, numbers of images, one cell a column."""
    signs = [name == "difference" for name in table.columns]
    rows = [
        [row.label, row.images, *(show(c, table.percent, s) for c, s in zip(row.cells, signs, strict=True))]
        for row in table.rows
    ]
    return ["", "n (photographs + generated)", *table.columns], rows


def to_markdown(tables: Sequence[Table]) -> str:
    """All tables with their notes as GitHub-flavoured Markdown."""
    parts = []
    for table in tables:
        header, rows = grid(table)
        lines = [header, ["---"] + ["---:"] * (len(header) - 1), *rows]
        body = "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)
        parts.append(f"## {table.title}\n\n{body}\n\n{table.note}\n")
    return "\n".join(parts)


def to_csv(tables: Sequence[Table]) -> str:
    """One line a number (table, row, column, value, low, high, n_real, n_generated), as fractions; empty = n/a."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(["table", "row", "column", "value", "low", "high", "n_real", "n_generated"])
    for table in tables:
        for row in table.rows:
            for column, cell in zip(table.columns, row.cells, strict=True):
                numbers = ["" if math.isnan(x) else repr(float(x)) for x in (cell.value, cell.low, cell.high)]
                writer.writerow([table.key, row.label, column, *numbers, cell.n_real, cell.n_generated])
    return out.getvalue()


def to_latex(tables: Sequence[Table]) -> str:
    """Tables for a paper; needs the booktabs package."""
    parts = []
    for table in tables:
        header, rows = grid(table)
        lines = [r"\begin{table}", rf"\caption{{{_tex(table.title)}. {_tex(table.note)}}}"]
        lines += [rf"\begin{{tabular}}{{l{'r' * (len(header) - 1)}}}", r"\toprule"]
        lines += [" & ".join(map(_tex, header)) + r" \\", r"\midrule"]
        lines += [" & ".join(map(_tex, row)) + r" \\" for row in rows]
        parts.append("\n".join([*lines, r"\bottomrule", r"\end{tabular}", r"\end{table}", ""]))
    return "\n".join(parts)


def to_text(tables: Sequence[Table]) -> str:
    """All tables in aligned columns for a terminal."""
    parts = []
    for table in tables:
        header, rows = grid(table)
        lines = [header, *rows]
        widths = [max(len(line[i]) for line in lines) for i in range(len(header))]
        body = [
            "  ".join([line[0].ljust(widths[0]), *(c.rjust(w) for c, w in zip(line[1:], widths[1:], strict=True))])
            for line in lines
        ]
        parts.append("\n".join([table.title, *(("  " + line).rstrip() for line in body), ""]))
    return "\n".join(parts)


def _tex(text: str) -> str:
    return re.sub(r"([#$%&_{}])", r"\\\1", text.replace("\\", "/"))
