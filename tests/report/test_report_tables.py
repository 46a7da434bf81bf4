"""The report kit: one table in every format, and its place below all that is reported on."""

import ast
import csv
import io
import math
from dataclasses import dataclass
from pathlib import Path

import pytest

import blades_dist
from blades_dist.report.page import without_nan
from blades_dist.report.tables import Table, TableRow

PACKAGE = Path(blades_dist.__file__).parent
# What a package of the reporting side never imports: all that lies above it.
ABOVE = {
    "report": {"data", "evaluate", "tuning", "training", "detect", "models", "serving", "simulate"},
    "evaluate": {"training", "tuning", "serving", "bilevel"},
}


@dataclass(frozen=True)
class Number:
    value: float


def table() -> Table:
    rows = (
        TableRow("a|b", (Number(0.25), "x_1"), n="3", group="one"),
        TableRow("alone", (Number(math.nan), None), group="alone"),
        TableRow("all <i>", (Number(0.5), 7), n="4", group="end", total=True),
    )
    return Table(
        "Title",
        ("share", "b & c"),
        rows,
        labels="name",
        groups="group",
        counts="n (images)",
        key="key",
        note="How to <read> it.",
        text=lambda cell, _: f"{cell.value:.2f} [?]" if isinstance(cell, Number) else "" if cell is None else str(cell),
        shade=lambda cell: "color:red",
    )


def test_markdown_escapes_and_aligns_numbers_to_the_right() -> None:
    lines = table().to_markdown().splitlines()
    assert lines[0] == "## Title" and lines[-1] == "How to <read> it."
    assert lines[2:5] == [
        "| group | name | n (images) | share | b & c |",
        "| --- | --- | ---: | ---: | ---: |",
        "| one | a\\|b | 3 | 0.25 [?] | x_1 |",
    ]
    assert Table.of_records([]).to_markdown() == "none\n"


def test_csv_holds_what_the_cells_are() -> None:
    records = [
        {"run": "c0", "steps": 3, "auc": 1 / 3, "why": None},
        {"run": "c1", "steps": 4, "auc": math.nan, "why": ""},
    ]
    lines = list(csv.reader(io.StringIO(Table.of_records(records).to_csv())))
    assert lines == [["run", "steps", "auc", "why"], ["c0", "3", repr(1 / 3), ""], ["c1", "4", "", ""]]


def test_html_escapes_and_keeps_the_exact_number() -> None:
    page = table().to_html()
    assert (
        '<table id="key">' in page and "<caption>Title</caption>" in page and "<caption>" not in table().to_html(False)
    )
    assert '<td style="color:red"><data value="0.25">0.25</data> <small>[?]</small></td>' in page
    assert page.count('<td class="none">n/a</td>') == 1 and "<i>" not in page and "How to &lt;read&gt; it." in page
    assert page.count('<th scope="rowgroup" colspan="4">') == 2, "a row that is its own group needs no heading"
    assert page.count('<tr class="total">') == 1 and page.count("<tbody>") == 3


def test_latex_and_text_show_the_same_cells() -> None:
    latex, lines = table().to_latex(), table().to_text().splitlines()
    assert r"\begin{tabular}{llrrr}" in latex and r"one & a$|$b & 3 & 0.25 [?] & x\_1 \\" in latex
    assert lines[0] == "Title" and lines[2].split() == ["one", "a|b", "3", "0.25", "[?]", "x_1"]


def test_json_cannot_hold_what_is_not_finite() -> None:
    assert without_nan({"a": [math.inf, (1.0, math.nan)], "b": "c"}) == {"a": [None, [1.0, None]], "b": "c"}


@pytest.mark.parametrize("package", ABOVE)
def test_nothing_above_is_imported(package: str) -> None:
    for path in (PACKAGE / package).rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("blades_dist"):
                part = (node.module or "").split(".")[1:2] or [alias.name for alias in node.names]
                assert not ABOVE[package] & set(part), f"{path.name} imports {node.module}"
