"""What runs next, with Ray Tune's Optuna searcher behind it; no cluster."""

from pathlib import Path
from types import SimpleNamespace

import pytest

from blades_dist.tuning.config import SweepConfig
from blades_dist.tuning.encoders import bundles, fitting
from blades_dist.tuning.ledger import Candidate, Ledger
from blades_dist.tuning.plan import Job, Plan
from blades_dist.tuning.proposals import FromOptuna, FromPopulation, Member, first_generation, next_generation
from blades_dist.tuning.searcher import ResumableASHA
from tests.tuning.small import SPACE, config


def opened(sweep: SweepConfig) -> tuple[Ledger, Plan]:
    """As at a start of the driver."""
    ledger = Ledger(sweep.folder / "encoders.jsonl")
    return ledger, Plan(sweep, ledger, FromOptuna(sweep, ledger), threads=3)


def finish(plan: Plan, run: str, value: float) -> None:
    plan.report(run, 2, value)
    plan.end(run, state="finished", terms={"proxy": value}, score=value)


def test_the_default_comes_first_then_seeds_then_new_candidates(tmp_path: Path) -> None:
    ledger, plan = opened(config(tmp_path, encoders={"candidates": 2, "seeds": 2}))
    names = []
    while (job := plan.next()) is not None:
        names.append(job.stem)
        finish(plan, job.stem, 0.5 + len(names) / 100)
    assert names == ["c000-s0", "c000-s1", "c001-s0", "c001-s1", "c002-s0", "c002-s1"] and plan.done()
    read = {name: Job.model_validate_json((tmp_path / "small" / "jobs" / f"{name}.json").read_text()) for name in names}
    assert read["c000-s0"].pretrain.train.lr == 1e-5 and read["c000-s1"].pretrain.train.seed == 1
    lr = ledger.candidates[1].values["train.lr"]
    assert read["c001-s1"].pretrain.train.lr == lr and 1e-5 <= lr <= 1e-2
    one = read["c001-s0"].pretrain
    assert (one.name, one.storage) == ("small-c001-s0", tmp_path / "small" / "encoders")
    assert (one.train.validate_every, one.train.threads_per_worker, one.read_out.photographic_share) == (2, 3, 0.5)


def test_a_stopped_candidate_has_no_further_seed_and_live_runs_are_waited_for(tmp_path: Path) -> None:
    ledger, plan = opened(config(tmp_path, encoders={"candidates": 1, "seeds": 2}))
    first, second = plan.next(), plan.next()
    assert first and second and plan.next() is None and not plan.done()
    plan.report(second.stem, 2, 0.4)
    plan.end(second.stem, state="stopped")
    finish(plan, first.stem, 0.6)
    last = plan.next()
    assert last is not None and last.stem == "c000-s1"
    plan.end(last.stem, state="failed", why="step 3")
    assert plan.next() is None and plan.done() and ledger.finished(2) == []


def test_a_killed_sweep_goes_on_with_what_was_open(tmp_path: Path) -> None:
    sweep = config(tmp_path, encoders={"candidates": 3})
    _, plan = opened(sweep)
    jobs = [plan.next() for _ in range(3)]
    assert all(jobs)
    finish(plan, "c000-s0", 0.6)
    plan.report("c001-s0", 2, 0.7)
    before = [job.read_text() for job in jobs if job]
    ledger, again = opened(sweep)
    assert [run.reports for run in ledger.runs.values()] == [[(2, 0.6)], [(2, 0.7)], []]
    resumed = [again.next(), again.next()]
    assert [job.stem for job in resumed if job] == ["c001-s0", "c002-s0"]
    assert [job.read_text() for job in resumed if job] == before[1:], "a job stays what it was"
    for job in resumed:
        assert job is not None
        finish(again, job.stem, 0.5)
    last = again.next()
    assert last is not None and last.stem == "c003-s0" and again.next() is None
    values = [candidate.values for candidate in ledger.candidates.values() if candidate.number]
    assert len({str(value) for value in values}) == 3


def test_optuna_learns_from_what_earlier_starts_have_found(tmp_path: Path) -> None:
    space = {"train.lr": {"low": 0.1, "high": 1.0}}
    sweep = config(tmp_path, encoders={"candidates": 40, "space": space})
    ledger, _ = opened(sweep)
    for number in range(1, 25):
        lr = 0.1 + 0.9 * number / 25
        ledger.add(Candidate(number, {"train.lr": lr}))
        ledger.start(number, 0)
        ledger.end(f"c{number:03d}-s0", "finished", score=1 - abs(lr - 0.3))
    again = FromOptuna(sweep, Ledger(ledger.file))
    proposed = []
    for _ in range(8):
        candidate = again.next()
        assert candidate is not None
        proposed.append(candidate.values["train.lr"])
        ledger.add(candidate)
        again._ledger.add(candidate)
    assert sum(abs(lr - 0.3) < 0.2 for lr in proposed) >= 6, "near the best known, which chance would hit 3 times"


def trial(run: str) -> SimpleNamespace:
    return SimpleNamespace(trial_id="tunes-own", config={"job": f"/x/{run}.json"})


def test_halving_stops_the_worse_and_remembers_its_marks_over_a_restart(tmp_path: Path) -> None:
    sweep = config(tmp_path, encoders={"candidates": 6})
    ledger = Ledger(tmp_path / "ledger.jsonl")
    for number in range(6):
        ledger.add(Candidate(number, {}))
        ledger.start(number, 0)
    ledger.start(1, 1)

    def decide(asha: ResumableASHA, run: str, step: int, value: float) -> str:
        asha.on_trial_add(None, trial(run))
        decision = asha.on_trial_result(None, trial(run), {"step": step, "coarse_auc": value})
        ledger.report(run, step, value)
        return decision

    asha = ResumableASHA(sweep.encoders, 6, ledger)
    assert decide(asha, "c001-s0", 2, 0.7) == "CONTINUE"
    assert decide(asha, "c002-s0", 2, 0.9) == "CONTINUE"
    assert decide(asha, "c003-s0", 2, 0.5) == "STOP"
    assert decide(asha, "c000-s0", 2, 0.1) == "CONTINUE", "the default is needed at the end"
    assert decide(asha, "c001-s1", 2, 0.1) == "CONTINUE", "a further seed has come through already"
    again = ResumableASHA(sweep.encoders, 6, Ledger(tmp_path / "ledger.jsonl"))
    for one in (again, asha):
        assert decide(one, "c004-s0" if one is again else "c005-s0", 2, 0.55) == "STOP", "below the median of the marks"
    without = Ledger(tmp_path / "other.jsonl")
    without.add(Candidate(4, {}))
    without.start(4, 0)
    assert decide(ResumableASHA(sweep.encoders, 6, without), "c004-s0", 3, 0.1) == "CONTINUE", (
        "without marks nothing is worse"
    )
    assert decide(asha, "c001-s0", 6, 0.0) == "CONTINUE", "at its end a run is measured"


def test_a_population_copies_the_best_and_is_the_same_at_every_start(tmp_path: Path) -> None:
    space = {key: value for key, value in SPACE.items() if key == "train.lr"} | {
        "bilevel.route": ["exact", "alternating"]
    }
    search = config(
        tmp_path,
        pretrain={**config(tmp_path).pretrain.model_dump(), "train": {"schedule": "constant"}},
        encoders={"scheduler": "population", "space": space, "candidates": 4, "resample": 0.0},
    ).encoders
    values = first_generation(search, 5)
    assert values == first_generation(search, 5) != first_generation(search, 6) and len(values) == 4
    scores = [0.9, 0.5, 0.7, None]
    members = [Member(value, f"r{i}", score) for i, (value, score) in enumerate(zip(values, scores, strict=True))]
    found = next_generation(members, search, 5, 1)
    assert found == next_generation(members, search, 5, 1)
    assert [parent for _, parent in found] == ["r0", "r0", "r2", "r0"], "the worst and the failed copy the best"
    assert found[0][0] == values[0] and found[2][0] == values[2]
    ratio = found[1][0]["train.lr"] / values[0]["train.lr"]
    assert ratio == pytest.approx(0.8) or ratio == pytest.approx(1.25) or found[1][0]["train.lr"] in (1e-5, 1e-2)
    assert next_generation([Member({}, "r", None)], search, 5, 1) == []


def test_generations_wait_for_each_other(tmp_path: Path) -> None:
    base = config(tmp_path).pretrain.model_dump()
    base["train"] |= {"schedule": "constant"}
    sweep = config(
        tmp_path,
        pretrain=base,
        encoders={
            "scheduler": "population",
            "space": {"train.lr": SPACE["train.lr"]},
            "candidates": 2,
            "generations": 2,
        },
    )
    ledger = Ledger(tmp_path / "ledger.jsonl")
    ledger.add(Candidate(0, {}))
    source = FromPopulation(sweep, ledger)
    for _ in range(2):
        candidate = source.next()
        assert candidate is not None
        ledger.add(candidate)
        ledger.start(candidate.number, 0)
    assert source.next() is None and not source.exhausted()
    for run, value in (("c001-s0", 0.4), ("c002-s0", 0.8)):
        ledger.report(run, 3, value)
        ledger.end(run, "finished")
    second = [source.next()]
    ledger.add(second[0])
    source = FromPopulation(sweep, ledger)  # killed between two members
    second.append(source.next())
    ledger.add(second[1])
    assert [one.parent for one in second] == ["c002-s0", "c002-s0"] and source.exhausted() and source.next() is None


def test_only_as_many_runs_as_fit_at_the_same_time(tmp_path: Path) -> None:
    sweep = config(tmp_path)
    run = bundles(sweep)
    assert run == [{"CPU": 0.75}, {"CPU": 0.01}]
    assert [fitting([{"CPU": cores}], run) for cores in (0.5, 0.75, 1, 2, 4)] == [0, 0, 1, 2, 5]
    base = sweep.pretrain.model_dump()
    base["train"] |= {"gpu": True, "gpu_per_worker": 0.5, "cpus_per_worker": 1}
    shared = bundles(config(tmp_path, pretrain=base))
    assert fitting([{"CPU": 16, "GPU": 1}], shared) == 2 and fitting([{"CPU": 1.5, "GPU": 4}], shared) == 1
    base["train"] |= {"gpu_per_worker": 1.0, "workers": 4}
    four = bundles(config(tmp_path, pretrain=base))
    assert fitting([{"CPU": 32, "GPU": 2}] * 2, four) == 1 and fitting([{"CPU": 32, "GPU": 2}], four) == 0
    assert fitting([{"CPU": 32, "GPU": 2}] * 5, four) == 2, "room for a part of a run is no room"
