"""How the numbers of an evaluation stand in a table: cells with their intervals and numbers of images."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from blades_dist.evaluate.rates import Estimate
from blades_dist.report.tables import Table, TableRow

SIGNED = "difference"  # a column of this name shows its sign
COUNTS = "n (photographs + generated)"
NUMBERS = ("value", "low", "high", "n_real", "n_generated")  # of a cell, as columns of a CSV file


@dataclass(frozen=True)
class PValue:
    """Probability of so large a difference by chance; it has no interval of its own."""

    value: float
    n_real: int
    n_generated: int


Measurement = Estimate | PValue


def measured_table(
    key: str,
    title: str,
    note: str,
    columns: Sequence[str],
    rows: Sequence[TableRow],
    percent: bool,
    detail: bool = False,
) -> Table:
    """A table of measurements, which are kept as fractions; ``percent`` tells how estimates are shown."""
    style = "dense" if len(columns) > 4 else ""
    text = partial(_text, percent=percent)
    return Table(
        title, tuple(columns), tuple(rows), counts=COUNTS, key=key, note=note, detail=detail, style=style, text=text
    )


def row(label: str, cells: Sequence[Measurement], total: bool = False) -> TableRow:
    """A row that says on how many images its cells rest."""
    n = images(max(cells, key=lambda cell: cell.n_real + cell.n_generated))
    return TableRow(label, tuple(cells), n=n, total=total)


def images(cell: Measurement) -> str:
    """Numbers of images as "photographs + generated", or the one side that counts."""
    real, generated = cell.n_real, cell.n_generated
    return f"{real} + {generated}" if real and generated else f"{real} + 0" if real else f"0 + {generated}"


def show(cell: Measurement, percent: bool = False, signed: bool = False) -> str:
    """ "0.873 [0.850, 0.901]", in percent "87.3 [85.0, 90.1]"; "n/a" where there is no value or no interval."""
    if isinstance(cell, PValue):
        return "n/a" if math.isnan(cell.value) else "<0.001" if cell.value < 0.001 else f"{cell.value:.3f}"
    sign = "+" if signed else ""

    def number(value: float) -> str:
        if percent:
            return f"{100 * value:{sign}.1f}"
        return f"{value:{sign}.3f}"

    if math.isnan(cell.value):
        return "n/a"
    bounds = "n/a" if math.isnan(cell.low) else f"{number(cell.low)}, {number(cell.high)}"
    return f"{number(cell.value)} [{bounds}]"


def numbers(cell: Measurement) -> tuple[float | int, ...]:
    """``NUMBERS`` of a cell; nan where it has none."""
    bounds = (cell.low, cell.high) if isinstance(cell, Estimate) else (math.nan, math.nan)
    return cell.value, *bounds, cell.n_real, cell.n_generated


def by_number(tables: Iterable[Table]) -> Table:
    """All measurements of tables, one a line, for a CSV file."""
    rows = [
        TableRow(table.key, (one.label, column, *numbers(cell)))
        for table in tables
        for one in table.rows
        for column, cell in zip(table.columns, one.cells, strict=True)
    ]
    return Table("", ("row", "column", *NUMBERS), tuple(rows), labels="table")


def _text(cell: Any, column: str, percent: bool) -> str:
    return show(cell, percent, column == SIGNED)
