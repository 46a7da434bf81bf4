"""Tables for people and for programs: one type, written as Markdown, LaTeX, aligned text, CSV and HTML.

A cell is a plain value (text, a number, None) or an object whose attribute ``value`` is the exact number behind what
is shown, such as an estimate with its interval.
"""

import csv
import html
import io
import itertools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from markupsafe import Markup

from blades_dist.report.page import render

ABSENT = "\N{EN DASH}"  # where nothing can stand


@dataclass(frozen=True)
class TableRow:
    """``cells`` has one value a column; ``n`` says on how many images they rest; ``group`` names rows that belong
    together and follow each other; ``total``: the row sums up the others."""

    label: str
    cells: tuple[Any, ...]
    n: str = ""
    group: str = ""
    total: bool = False


def plain(value: Any, column: str = "") -> str:
    """A plain value as people read it: four digits of a fraction, nothing for None."""
    return "" if value is None else f"{value:.4g}" if isinstance(value, float) else str(value)


@dataclass(frozen=True)
class Table:
    """A table whose cells are kept as they are; ``text`` says how they read.

    Attributes:
        title: what it is, in a line.
        columns: one name a cell.
        rows: in order.
        labels, groups, counts: head the rows' labels, groups and ``n``; without ``counts`` no ``n`` is shown.
        key: its name for programs, and its id in a page.
        note: how to read it.
        detail: for a second look; pages fold it.
        style: CSS classes: "dense" for many columns, "heat" for cells in colour.
        text: of a cell, given its column.
        shade: CSS declarations of a cell in colour.
    """

    title: str
    columns: tuple[str, ...]
    rows: tuple[TableRow, ...]
    labels: str = ""
    groups: str = ""
    counts: str = ""
    key: str = ""
    note: str = ""
    detail: bool = False
    style: str = ""
    text: Callable[[Any, str], str] = plain
    shade: Callable[[Any], str] | None = None

    @classmethod
    def of_records(cls, records: Sequence[Mapping[str, Any]], title: str = "") -> "Table":
        """One row a record; all have the same keys in the same order, and the first holds the label."""
        labels, *columns = records[0] if records else [""]
        rows = [TableRow(plain(label), tuple(cells)) for label, *cells in (record.values() for record in records)]
        return cls(title, tuple(columns), tuple(rows), labels=labels)

    def to_markdown(self) -> str:
        """Heading, body and note as GitHub-flavoured Markdown; numbers are aligned to the right."""
        header, rows = self._as_text()
        left = 2 if self.groups else 1
        lines = [header, ["---"] * left + ["---:"] * (len(header) - left), *rows]
        body = "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)
        heading = f"## {self.title}" if self.title else ""
        return "\n\n".join(part for part in (heading, body if rows else "none", self.note) if part) + "\n"

    def to_latex(self) -> str:
        """For a paper; needs the booktabs package."""
        header, rows = self._as_text()
        left = 2 if self.groups else 1
        lines = [r"\begin{table}", rf"\caption{{{_tex(self.title)}. {_tex(self.note)}}}"]
        lines += [rf"\begin{{tabular}}{{{'l' * left}{'r' * (len(header) - left)}}}", r"\toprule"]
        lines += [" & ".join(map(_tex, header)) + r" \\", r"\midrule"]
        lines += [" & ".join(map(_tex, line)) + r" \\" for line in rows]
        return "\n".join([*lines, r"\bottomrule", r"\end{tabular}", r"\end{table}", ""])

    def to_text(self) -> str:
        """Aligned columns for a terminal."""
        header, rows = self._as_text()
        widths = [max(map(len, column)) for column in zip(header, *rows, strict=True)]
        aligned = [
            "  ".join([line[0].ljust(widths[0]), *(c.rjust(w) for c, w in zip(line[1:], widths[1:], strict=True))])
            for line in (header, *rows)
        ]
        return "\n".join([self.title, *(("  " + line).rstrip() for line in aligned), ""])

    def to_csv(self) -> str:
        """For programs: one line a row, numbers unrounded; empty where there is none."""
        out = io.StringIO()
        writer = csv.writer(out, lineterminator="\n")
        writer.writerow(self._header())
        writer.writerows([*self._stub(row), *map(_exact, row.cells)] for row in self.rows)
        return out.getvalue()

    def to_html(self, caption: bool = True) -> Markup:
        """As it stands in a page; without ``caption`` the title only names it for screen readers."""
        return Markup(render("blades_dist.report", "table.html.j2", t=self, caption=caption))

    def html_cell(self, column: str, value: Any) -> Markup:
        """A cell as shown, with the exact value beside it for whoever reads the page by machine."""
        exact = getattr(value, "value", None)
        if exact is not None and math.isnan(exact):
            return Markup('<td class="none">n/a</td>')
        text = self.text(value, column)
        inside = html.escape(text) if exact is None else html_number(value, text)
        style = f' style="{html.escape(self.shade(value))}"' if self.shade else ""
        return Markup(f"<td{style}>{inside}</td>")

    def grouped(self) -> Iterator[tuple[str, list[TableRow]]]:
        """Groups with their rows in order; the name is "" where it would only repeat that of its one row."""
        for group, members in itertools.groupby(self.rows, key=lambda row: row.group):
            rows = list(members)
            yield ("" if [row.label for row in rows] == [group] else group), rows

    def _header(self) -> list[str]:
        return [*self._stub(TableRow(self.labels, (), self.counts, self.groups)), *self.columns]

    def _stub(self, row: TableRow) -> list[str]:
        return [*([row.group] if self.groups else []), row.label, *([row.n] if self.counts else [])]

    def _as_text(self) -> tuple[list[str], list[list[str]]]:
        """Header and rows as shown."""
        return self._header(), [
            [*self._stub(row), *(self.text(cell, name) for name, cell in zip(self.columns, row.cells, strict=True))]
            for row in self.rows
        ]


def html_number(found: Any, text: str) -> Markup:
    """A number (an object with ``value``) that reads ``text``: the value, and its interval in small."""
    if math.isnan(found.value):
        return Markup('<span class="none">n/a</span>')
    shown, _, bounds = text.partition(" ")
    small = f" <small>{html.escape(bounds)}</small>" if bounds else ""
    return Markup(f'<data value="{float(found.value)!r}">{html.escape(shown)}</data>{small}')


def _exact(value: Any) -> Any:
    if isinstance(value, float):
        return "" if math.isnan(value) else repr(float(value))
    return "" if value is None else value


_TEX = {
    **{"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}"},
    **{"<": "$<$", ">": "$>$", "|": "$|$", "≤": r"$\le$", "λ": r"$\lambda$"},
    **{sign: "\\" + sign for sign in "#$%&_{}"},
}


def _tex(text: str) -> str:
    return "".join(_TEX.get(letter, letter) for letter in text)
