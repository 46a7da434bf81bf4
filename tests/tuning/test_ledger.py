"""The ledger is all that survives a kill: whatever was written whole is there again."""

from pathlib import Path

import pytest

from blades_dist.tuning.ledger import Candidate, Ledger


def filled(file: Path) -> Ledger:
    ledger = Ledger(file)
    ledger.add(Candidate(0, {}))
    ledger.add(Candidate(1, {"train.lr": 0.1, "bilevel.route": "exact"}))
    for seed in (0, 1):
        run = ledger.start(1, seed)
        ledger.report(run.name, 2, 0.6)
        ledger.end(run.name, "finished", {"proxy": 0.6}, 0.5 + seed / 10)
    ledger.start(0, 0)
    ledger.report("c000-s0", 2, 0.7)
    return ledger


def test_a_ledger_is_read_back(tmp_path: Path) -> None:
    file = tmp_path / "ledger.jsonl"
    first, again = filled(file), Ledger(file)
    assert vars(again) == vars(first) and [run.name for run in again.of(1)] == ["c001-s0", "c001-s1"]
    assert again.score(1) == pytest.approx(0.55) and again.finished(2) == [1]
    assert (again.state(0, 1), again.state(1, 2), again.state(1, 3)) == ("open", "finished", "open")
    again.end("c000-s0", "stopped")
    assert Ledger(file).state(0, 1) == "stopped"


@pytest.mark.parametrize("cut", [1, 15, 60])
def test_a_line_that_a_kill_has_cut_is_forgotten(tmp_path: Path, cut: int) -> None:
    file = tmp_path / "ledger.jsonl"
    filled(file)
    whole = file.read_bytes()
    file.write_bytes(whole[:-cut])
    again = Ledger(file)
    assert again.candidates.keys() == {0, 1}
    lost = not again.runs["c000-s0"].reports if "c000-s0" in again.runs else True
    assert lost, "the last line said that step 2 was reported"
    if "c000-s0" not in again.runs:
        again.start(0, 0)
    assert again.report("c000-s0", 2, 0.7) and Ledger(file).runs["c000-s0"].reports == [(2, 0.7)]


def test_a_step_is_noted_once(tmp_path: Path) -> None:
    ledger = filled(tmp_path / "ledger.jsonl")
    assert not ledger.report("c000-s0", 2, 0.9) and ledger.report("c000-s0", 4, 0.9)
    assert ledger.runs["c000-s0"].reports == [(2, 0.7), (4, 0.9)]


def test_a_line_that_is_no_json_is_named(tmp_path: Path) -> None:
    file = tmp_path / "ledger.jsonl"
    file.write_text("{}nonsense\n")
    with pytest.raises(ValueError, match="line 1"):
        Ledger(file)
