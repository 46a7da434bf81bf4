"""What is told of a sweep: the verdict, importance, tables."""

import random
from pathlib import Path

import pytest

from blades_dist.evaluate.rates import Estimate
from blades_dist.report.tables import Table
from blades_dist.tuning.compare import Comparison, Measured
from blades_dist.tuning.detectors import Row
from blades_dist.tuning.importance import importances
from blades_dist.tuning.ledger import Candidate, Ledger
from blades_dist.tuning.results import comparison_records, detector_records, plot_importances, plot_parallel
from tests.tuning.small import config


def compared(value: float, low: float, high: float, **flags: bool) -> Comparison:
    own = Estimate(0.8, 0.7, 0.9, 100, 50)
    one = Measured("default", {"a": own}, own, 0.06, 0.05, 0.4, [0.8])
    other = Measured("best found", {"a": own}, own, 0.04, 0.05, 0.5, [0.8])
    gap = Estimate(value, low, high, 100, 50)
    return Comparison(
        [one, other], [(gap, 0.03)], 100, {"a": 50}, flags.get("generated", True), flags.get("same", False)
    )


@pytest.mark.parametrize(
    ("gap", "said"),
    [
        ((0.1, 0.01, 0.2), "beats the default"),
        ((0.1, -0.01, 0.2), "not shown to beat"),
        ((-0.1, -0.2, -0.01), "worse than the default"),
    ],
)
def test_the_verdict_follows_the_interval(gap: tuple[float, float, float], said: str) -> None:
    found = compared(*gap)
    assert said in found.verdict() and "AI faces" in found.verdict() and found.beats == (said == "beats the default")
    assert "no AI face was given" in compared(*gap, generated=False).verdict()
    assert "default configuration itself" in compared(*gap, same=True).verdict()
    assert not compared(*gap, same=True).beats


def test_tables_name_every_column_once() -> None:
    rows = comparison_records(compared(0.1, 0.01, 0.2))
    assert rows[0].keys() == rows[1].keys() and rows[1]["difference"] == "+0.100 [+0.010, +0.200]"
    assert Table.of_records(rows).to_markdown().splitlines()[0].startswith("| configuration | mean AUC | nominal FPR |")
    mixed = [Row(0, 0, {"kind": "knn", "knn.k": 3}, {"proxy": 0.5}, 0.5, [0.5]), Row(0, 1, {"kind": "oc"}, error="few")]
    found = detector_records(mixed)
    assert found[0].keys() == found[1].keys() and found[1]["knn.k"] == "" and found[1]["error"] == "few"


def test_importance_finds_the_key_that_matters(tmp_path: Path) -> None:
    sweep, own = config(tmp_path, encoders={"candidates": 40}), random.Random(0)
    ledger, rows = Ledger(tmp_path / "ledger.jsonl"), []
    ledger.add(Candidate(0, {}))
    for number in range(1, 31):
        values = {key: space.draw(own) for key, space in sweep.encoders.space.items()}
        ledger.add(Candidate(number, values))
        ledger.start(number, 0)
        ledger.report(f"c{number:03d}-s0", 2, float(values["bilevel.initial.face_coarse"]) / 2)
        kind, fpr = own.choice(["oc", "knn", "mahalanobis"]), own.choice([0.05, 0.1])
        rows.append(Row(number % 2, number, {"kind": kind, "fpr": fpr}, score={"oc": 0.9, "knn": 0.5}.get(kind, 0.1)))
    encoders, detectors = importances(sweep, ledger, rows)
    assert max(encoders.shares, key=encoders.shares.__getitem__) == "bilevel.initial.face_coarse"
    assert detectors.shares.keys() == {"kind", "fpr", "encoder"} and detectors.shares["kind"] > 0.8
    assert importances(sweep, Ledger(tmp_path / "none.jsonl"), rows[:3]) == [], "too few trials say nothing"
    points = [(candidate.values, number / 30) for number, candidate in ledger.candidates.items() if number]
    drawn = plot_parallel(points, sweep.encoders.space, "score", [number % 2 == 0 for number in range(30)])
    assert len(drawn.axes[0].lines) == 30 + len(sweep.encoders.space)
    assert [len(axes.patches) for axes in plot_importances([encoders, detectors]).axes] == [2, 3]
