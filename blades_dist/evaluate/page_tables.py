"""Tables that only the page of an evaluation has: containers side by side, and accuracies of the pretext tasks."""

import math
from collections.abc import Mapping
from functools import partial

from blades_dist.evaluate.parity import ALL, Audit, Distribution
from blades_dist.evaluate.pretraining_run import Pretext, TaskAccuracy
from blades_dist.evaluate.rates import Estimate
from blades_dist.evaluate.table_formats import show
from blades_dist.report.tables import ABSENT, Table, TableRow


def container_table(audit: Audit, title: str) -> Table:
    """What the files of each side are, with the AUC at which that alone tells a generator's from photographs."""
    sides = {"photographs": audit.real, **audit.generators}
    facts = list(dict.fromkeys(name for side in sides.values() for name in side.counts))
    numbers = list(audit.real.quantiles)
    rows = []
    for name, side in sides.items():
        found = ABSENT if side is audit.real else audit.container_auc.get(name, "too few images")
        values = [_spread(side, number) for number in numbers]
        values += [_counts(side.counts.get(fact, {}), side.n) for fact in facts]
        rows.append(TableRow(name, (found, _counts(side.codecs, side.n), *values), n=str(side.n)))
    if ALL in audit.container_auc:
        found = audit.container_auc[ALL]
        empty = [""] * (1 + len(numbers) + len(facts))
        rows.append(TableRow(ALL, (found, *empty), n=str(found.n_generated), total=True))
    columns = ("container AUC", "codec", *map(_words, [*numbers, *facts]))
    return Table(title, columns, tuple(rows), counts="n", text=_text)


def pretext_table(pretext: Pretext) -> Table:
    """Accuracy of every EXIF task beside that of always naming the most frequent class."""
    rows = [TableRow(name, _accuracy(task), n=str(task.n)) for name, task in pretext.tasks.items()]
    columns = ("accuracy", "most frequent class", "interval lies above it")
    text = partial(_text, percent=True)
    return Table("Accuracy of the EXIF tasks, %", columns, tuple(rows), counts="n", text=text)


def _accuracy(task: TaskAccuracy) -> tuple[Estimate | str, ...]:
    value, low, high = (math.nan if one is None else one for one in (task.accuracy, task.low, task.high))
    majority = "n/a" if task.majority is None else f"{100 * task.majority:.1f}"
    above = "n/a" if task.low is None or task.majority is None else "yes" if task.low > task.majority else "no"
    return Estimate(value, low, high, task.n, 0), majority, above


def _text(cell: Estimate | str, column: str, percent: bool = False) -> str:
    return cell if isinstance(cell, str) else show(cell, percent)


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
