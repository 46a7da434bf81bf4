import csv
import io
import json
import math

import pytest

from blades_dist.evaluate import grid_report
from blades_dist.evaluate.assess import assess
from blades_dist.evaluate.grid_report import Cell, Grid
from tests.evaluate.pages import assert_self_contained
from tests.evaluate.synthetic import make_pairs

ROWS = {"clean": ("",), "JPEG": ("jpeg95", "jpeg30"), "chain <&>": ("resize0.5+jpeg75",)}
DETECTORS = ("oc", "k|NN <5>")
MISSING = ("jpeg30", "k|NN <5>")


@pytest.fixture(scope="module")
def grid():
    cells = {}
    for i, spec in enumerate(spec for specs in ROWS.values() for spec in specs):
        for j, name in enumerate(DETECTORS):
            if (spec, name) != MISSING:
                cells[spec, name] = grid_report.cell(
                    assess(make_pairs(i + 9 * j, 2.5 - i / 2, True, False, False), 100)
                )
    return Grid(DETECTORS, ROWS, cells, 0.95, "2026-01-01", ("SIMULATED <data>.",), {"rate": math.inf}, {"blades": "0"})


def test_the_page_shows_every_number_once_and_needs_nothing_but_itself(grid):
    text = grid_report.to_html(grid)
    page = assert_self_contained(text)
    for measure in grid_report.MEASURES:
        wanted = [
            getattr(grid.cells[spec, name], measure).value
            for specs in ROWS.values()
            for spec in specs
            for name in DETECTORS
            if (spec, name) != MISSING
        ]
        assert page.values[f"heat-{measure}"] == wanted
    assert page.text[0] == "SIMULATED <data>." and page.text[1] == grid_report.summary(grid)
    assert text.count('<td class="none">n/a</td>') == 3
    assert "Thresholds and p-values are those of the clean calibration" in " ".join(page.text)
    assert "<5>" not in text and "<data>" not in text


def test_csv_json_and_markdown_hold_the_same_numbers(grid):
    lines = list(csv.DictReader(io.StringIO(grid_report.to_csv(grid))))
    found = json.loads(json.dumps(grid_report.results(grid), allow_nan=False))
    assert len(lines) == 3 * len(found["cells"]) == 3 * 7
    for line in lines:
        (own,) = [
            cell
            for cell in found["cells"]
            if (cell["perturbation"], cell["detector"]) == (line["perturbation"], line["detector"])
        ]
        assert float(line["value"]) == own[line["measure"]]["value"] and line["family"] == own["family"]
        assert (line["n_real"], line["n_generated"]) == ("120", "200")
    text = grid_report.to_markdown(grid)
    rows = [line for line in text.splitlines() if line.startswith("| JPEG | jpeg30")]
    assert len(rows) == 3 and all(row.endswith("| n/a |") for row in rows)
    assert "k\\|NN" in text and "| clean | unchanged | 120 + 200 |" in text


def test_summary_names_the_lowest_auc(grid):
    own = {spec: grid.cells[spec, "oc"].auc.value for specs in ROWS.values() for spec in specs if spec}
    lowest = min(own, key=own.get)
    assert grid_report.summary(grid).endswith(f"at its lowest ({lowest})")
    clean = Grid(("oc",), {"clean": ("",)}, {("", "oc"): grid.cells["", "oc"]}, 0.95, "")
    assert grid_report.summary(clean) == "oc: no perturbation was measured"
    assert grid_report.summary(Grid(("oc",), {}, {}, 0.95, "")) == "oc: no perturbation was measured"


def test_ink_reads_on_every_colour():
    """WCAG 2 contrast of at least 4.5 to 1, whatever the page's theme."""

    def luminance(colour):
        parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
        linear = [x / 12.92 if x <= 0.04045 else ((x + 0.055) / 1.055) ** 2.4 for x in parts]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    for i in range(101):
        high, low = sorted(map(luminance, grid_report._colour(i / 100)), reverse=True)
        assert (high + 0.05) / (low + 0.05) >= 4.5


def test_what_has_no_place_is_refused(grid):
    any_cell = grid.cells["", "oc"]
    assert isinstance(any_cell, Cell)
    with pytest.raises(ValueError, match="'blur2' of 'oc' has numbers but no place"):
        Grid(("oc",), ROWS, {("blur2", "oc"): any_cell}, 0.95, "")
    with pytest.raises(ValueError, match=r"\['a'\] are named twice"):
        Grid(("oc",), {"x": ("a",), "y": ("a",)}, {}, 0.95, "")
