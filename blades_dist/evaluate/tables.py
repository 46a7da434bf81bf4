"""The tables of an evaluation, over all its detectors; how they read is in ``table_formats``."""

import math
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from blades_dist.detect.calibrate import STANDARD_FPRS
from blades_dist.evaluate.assess import RANKING, Assessment
from blades_dist.evaluate.bootstrap import paired_difference, paired_difference_p
from blades_dist.evaluate.paired import delong, holm, mcnemar
from blades_dist.evaluate.rates import Estimate
from blades_dist.evaluate.table_formats import SIGNED, PValue, measured_table, row
from blades_dist.report.tables import Table, TableRow

MEAN = "mean"
_UNSURE = 'Decisions are those of the score alone, as papers give them; verdicts with "unsure" are in table 6. '
_CORRECTED = "corrected"
_HOLM = f'"{_CORRECTED}" p-values account for the number of tests in their column (Holm). '


def build_tables(assessments: Mapping[str, Assessment], confidence: float = 0.95) -> list[Table]:
    """Tables 1 to 6 over all detectors and, when there are more, the first's comparisons with each other one.

    Raises:
        ValueError: no detector, or detectors that do not rest on the same images.
    """
    _check(assessments)
    tables = [
        _accuracy_table(assessments),
        _auc_table(assessments, confidence),
        _rates_table(assessments),
        _ranking_table(assessments, confidence),
        _calibration_table(assessments),
        _unsure_table(assessments),
    ]
    if len(assessments) > 1:
        tables += [_comparison_table(assessments, confidence), _paired_table(assessments, confidence)]
    return tables


def _accuracy_table(assessments: Mapping[str, Assessment]) -> Table:
    rows = _by_generator(assessments, lambda a, i, name: a.accuracy[name])
    rows.append(row(MEAN, [a.mean_accuracy for a in assessments.values()], total=True))
    note = (
        "Balanced accuracy at the detector's own operating point: half the share of photographs not flagged plus half "
        "the share of that generator's images flagged, so that it does not depend on the sizes of the two sides. "
        f"{_UNSURE}The mean is over generators. Intervals: Wilson, joined by square and add.{_heads(assessments)}"
    )
    return measured_table("table1", "Table 1. Accuracy per generator, %", note, list(assessments), rows, True)


def _auc_table(assessments: Mapping[str, Assessment], confidence: float) -> Table:
    rows = _by_generator(assessments, lambda a, i, name: a.ranked["AUC"].estimate(i, confidence))
    rows.append(row(MEAN, [a.ranked["AUC"].mean(confidence) for a in assessments.values()], total=True))
    note = (
        "Area under the ROC curve of each generator against all photographs; 0.5 is chance, below 0.5 means that the "
        "generator's images score as more photographic than photographs. The mean is over generators. Intervals: "
        f"stratified percentile bootstrap, the photographs drawn once for all generators.{_heads(assessments)}"
    )
    return measured_table("table2", "Table 2. AUC per generator", note, list(assessments), rows, False)


def _rates_table(assessments: Mapping[str, Assessment]) -> Table:
    names = ("TNR", "FPR", "TPR", "FNR", "F1")
    rows = [row(name, [a.confusion[name] for a in assessments.values()]) for name in names]
    note = (
        "At the detector's own operating point, all generators together; positive = AI-generated, so TNR and FPR are "
        f"shares of photographs, TPR and FNR of generated images. {_UNSURE}F1 depends on the numbers of images on the "
        f"two sides. Intervals: Wilson; for F1 from the Jeffreys distributions of the two rates.{_heads(assessments)}"
    )
    return measured_table("table3", "Table 3. Decisions, %", note, list(assessments), rows, True)


def _ranking_table(assessments: Mapping[str, Assessment], confidence: float) -> Table:
    names = [name for name in RANKING if name != "AUC"]
    rows = [row(name, [a.ranked[name].mean(confidence) for a in assessments.values()]) for name in names]
    note = (
        "Means over generators. AP: average precision, which depends on the numbers of images on the two sides. EER: "
        "equal error rate. TPR at x% FPR: over thresholds of this test set, so it describes the scores, not the "
        "detector's operating point. Intervals: bootstrap as in table 2."
    )
    return measured_table("table4", "Table 4. Ranking measures, %", note, list(assessments), rows, True)


def _calibration_table(assessments: Mapping[str, Assessment]) -> Table:
    found = list(assessments.values())
    none = [Estimate(math.nan, math.nan, math.nan, a.n_real, 0) for a in found]
    pairs = list(zip(found, none, strict=True))
    rows = [
        row("probability: ECE", [a.reliability.ece if a.reliability else nan for a, nan in pairs]),
        row("probability: Brier score", [a.reliability.brier if a.reliability else nan for a, nan in pairs]),
        row("p-values: largest error", [a.p_error or nan for a, nan in pairs]),
    ]
    rows += [
        row(f"FPR at p ≤ {100 * level:g}%", [a.fpr.get(level, nan) for a, nan in pairs]) for level in STANDARD_FPRS
    ]
    note = (
        "ECE: expected calibration error of the probability of AI-generated, 15 bins of equal width; sides count one "
        "half each and generators alike, so that it does not depend on the sizes of the sides. Brier score: weighted "
        "alike. Their intervals: bootstrap; that of the ECE starts at 0 unless chance cannot explain its value. "
        "p-values: on photographs, the largest |measured FPR - nominal| over all nominal rates, with the "
        "Dvoretzky-Kiefer-Wolfowitz band; then the measured FPR at four nominal rates, with Wilson's interval. n/a: "
        "the detector has no probability, or no p-values."
    )
    return measured_table("table5", "Table 5. Calibration, %", note, list(assessments), rows, True)


def _unsure_table(assessments: Mapping[str, Assessment]) -> Table:
    rows = [row("photographs: unsure", [a.unsure_photographs for a in assessments.values()])]
    rows += [row("photographs: called AI-generated", [a.called_photographs for a in assessments.values()])]
    for name in next(iter(assessments.values())).generators:
        rows.append(row(f"{name}: unsure", [a.unsure[name] for a in assessments.values()]))
        rows.append(row(f"{name}: called AI-generated", [a.called[name] for a in assessments.values()]))
    note = (
        'What a person is told: "unsure" where the p-value lies between two operating points or re-encodings disagree, '
        '"AI-generated" where the score is flagged and all re-encodings agree, "photographic" otherwise. Intervals: '
        f"Wilson.{_heads(assessments)}"
    )
    return measured_table("table6", "Table 6. Verdicts, %", note, list(assessments), rows, True)


def _comparison_table(assessments: Mapping[str, Assessment], confidence: float) -> Table:
    (main, first), *others = assessments.items()
    measured = [first.ranked["AUC"]] + [other.ranked["AUC"] for _, other in others]
    p_auc = [paired_difference_p(measured[0], other) for other in measured[1:]]
    decisions = [_decisions(first, other) for _, other in others]
    corrected = holm(p_auc), holm(decisions)
    rows = []
    for i, (name, _) in enumerate(others):
        means = [measured[0].mean(confidence), measured[i + 1].mean(confidence)]
        gap = paired_difference(measured[0], measured[i + 1], confidence)
        p_values = [p_auc[i], corrected[0][i], decisions[i], corrected[1][i]]
        rows.append(row(f"{main} against {name}", [*means, gap, *_p_values(p_values, gap)]))
    note = (
        "Mean AUC over generators. The difference is paired: both detectors on the same resampled images, so its "
        "interval is narrower than the two separate ones suggest; one that holds 0 does not tell them apart. p: two "
        "sided, from the same resamples. McNemar: exact test on the decisions over all images together, whose numbers "
        "it therefore depends on; n/a where generators have heads of their own, as a photograph then has several "
        f"decisions. {_HOLM}n/a: too few images, or nothing varied."
    )
    columns = (main, "other", SIGNED, "p", f"p {_CORRECTED}", "p McNemar", f"p McNemar {_CORRECTED}")
    return measured_table("comparison", "Paired comparison", note, columns, rows, False)


def _paired_table(assessments: Mapping[str, Assessment], confidence: float) -> Table:
    (main, first), *others = assessments.items()
    labels, gaps, alone = [], [], []
    for name, other in others:
        for generator, own in first.pairs.items():
            pair = other.pairs[generator]
            labels.append(f"{name}, {generator}")
            scores = [(side.real.scores, side.generated.scores) for side in (own, pair)]
            gaps.append(delong(scores[0], scores[1], confidence))
            real = (own.real.flagged, pair.real.flagged)
            alone.append(mcnemar(real, (own.generated.flagged, pair.generated.flagged), confidence))
    corrected = holm([p for _, p in gaps]), holm([found.p for found in alone])
    rows = []
    for i, label in enumerate(labels):
        gap, p = gaps[i]
        first_p, second_p = _p_values([p, corrected[0][i]], gap), _p_values([alone[i].p, corrected[1][i]], gap)
        rows.append(row(label, [gap, *first_p, alone[i].first, alone[i].second, *second_p]))
    note = (
        f"{main} against each other detector, generator by generator. difference: of the AUCs, with DeLong's interval "
        f"and p-value for correlated curves. only {main}, only other: share of the photographs and that generator's "
        "images that one of the two alone judged rightly, with Wilson's interval and McNemar's exact p-value. "
        f"{_HOLM}n/a: too few images, or nothing varied."
    )
    columns = (
        *(SIGNED, "p DeLong", f"p DeLong {_CORRECTED}"),
        *(f"only {main}", "only other", "p McNemar", f"p McNemar {_CORRECTED}"),
    )
    return measured_table("paired", "Paired tests per generator", note, columns, rows, False, detail=True)


def _decisions(first: Assessment, second: Assessment) -> float:
    """McNemar's p-value over all images; nan where a photograph has more than one decision of a detector."""
    if first.own_heads or second.own_heads:
        return math.nan
    by_pair = list(zip(first.pairs.values(), second.pairs.values(), strict=True))
    real = (by_pair[0][0].real.flagged, by_pair[0][1].real.flagged)
    flags = [[pair[side].generated.flagged for pair in by_pair] for side in (0, 1)]
    return mcnemar(real, (np.concatenate(flags[0]), np.concatenate(flags[1]))).p


def _p_values(values: Sequence[float], like: Estimate) -> list[PValue]:
    return [PValue(value, like.n_real, like.n_generated) for value in values]


def _by_generator(
    assessments: Mapping[str, Assessment], cell: Callable[[Assessment, int, str], Estimate]
) -> list[TableRow]:
    generators = next(iter(assessments.values())).generators
    return [row(name, [cell(a, i, name) for a in assessments.values()]) for i, name in enumerate(generators)]


def _heads(assessments: Mapping[str, Assessment]) -> str:
    """What to know of detectors with a head a generator, as a sentence to append."""
    names = [name for name, found in assessments.items() if found.own_heads]
    if not names:
        return ""
    return (
        f" {', '.join(names)}: each generator was judged by a head that had not seen it (leave one generator out), so "
        "rates on photographs are means over those heads."
    )


def _check(assessments: Mapping[str, Assessment]) -> None:
    if not assessments:
        raise ValueError("no detector to tabulate")
    sizes = {
        name: {"photographs": found.n_real} | {key: len(pair.generated) for key, pair in found.pairs.items()}
        for name, found in assessments.items()
    }
    (first, wanted), *others = sizes.items()
    for name, size in others:
        if list(size.items()) != list(wanted.items()):
            raise ValueError(f"{first} and {name} were not measured on the same images: {wanted} against {size}")
