"""How tables read: Markdown, CSV, LaTeX and aligned text."""

import csv
import io
import math
from collections.abc import Sequence
from dataclasses import dataclass

from blades_dist.evaluate.rates import Estimate

SIGNED = "difference"  # a column of this name shows its sign


@dataclass(frozen=True)
class PValue:
    """Probability of so large a difference by chance; it has no interval of its own."""

    value: float
    n_real: int
    n_generated: int


Cell = Estimate | PValue


@dataclass(frozen=True)
class Row:
    """``cells`` has one value a column; ``images`` says on how many they rest, alike for all of them."""

    label: str
    images: str
    cells: tuple[Cell, ...]


@dataclass(frozen=True)
class Table:
    """``percent`` tells how estimates are shown; they are always kept as fractions. ``detail``: for a second look."""

    key: str
    title: str
    note: str
    columns: tuple[str, ...]
    rows: tuple[Row, ...]
    percent: bool
    detail: bool = False


def row(label: str, cells: Sequence[Cell]) -> Row:
    """A row that says on how many images its cells rest."""
    return Row(label, images(max(cells, key=lambda cell: cell.n_real + cell.n_generated)), tuple(cells))


def images(cell: Cell) -> str:
    """Numbers of images as "photographs + generated", or the one side that counts."""
    real, generated = cell.n_real, cell.n_generated
    return f"{real} + {generated}" if real and generated else f"{real} + 0" if real else f"0 + {generated}"


def show(cell: Cell, percent: bool = False, signed: bool = False) -> str:
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


def grid(table: Table) -> tuple[list[str], list[list[str]]]:
    """Header and rows as shown: label, numbers of images, one cell a column."""
    signs = [name == SIGNED for name in table.columns]
    rows = [
        [one.label, one.images, *(show(c, table.percent, s) for c, s in zip(one.cells, signs, strict=True))]
        for one in table.rows
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
        for one in table.rows:
            for column, cell in zip(table.columns, one.cells, strict=True):
                bounds = (cell.low, cell.high) if isinstance(cell, Estimate) else (math.nan, math.nan)
                numbers = ["" if math.isnan(x) else repr(float(x)) for x in (cell.value, *bounds)]
                writer.writerow([table.key, one.label, column, *numbers, cell.n_real, cell.n_generated])
    return out.getvalue()


def to_latex(tables: Sequence[Table]) -> str:
    """Tables for a paper; needs the booktabs package."""
    parts = []
    for table in tables:
        header, rows = grid(table)
        lines = [r"\begin{table}", rf"\caption{{{_tex(table.title)}. {_tex(table.note)}}}"]
        lines += [rf"\begin{{tabular}}{{l{'r' * (len(header) - 1)}}}", r"\toprule"]
        lines += [" & ".join(map(_tex, header)) + r" \\", r"\midrule"]
        lines += [" & ".join(map(_tex, line)) + r" \\" for line in rows]
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


_TEX = {
    **{"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}"},
    **{"<": "$<$", ">": "$>$", "|": "$|$", "≤": r"$\le$", "λ": r"$\lambda$"},
    **{sign: "\\" + sign for sign in "#$%&_{}"},
}


def _tex(text: str) -> str:
    return "".join(_TEX.get(letter, letter) for letter in text)
