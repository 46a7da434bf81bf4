"""The plan as a Ray Tune searcher, and ASHA that continues with the results of earlier starts of the sweep."""

from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from ray.tune.schedulers import ASHAScheduler, TrialScheduler
from ray.tune.search import Searcher

from blades_dist.progress import Say
from blades_dist.tuning.config import EncoderSearch
from blades_dist.tuning.ledger import DEFAULT, Ledger
from blades_dist.tuning.plan import Plan
from blades_dist.tuning.train_run import METRIC


class PlanSearcher(Searcher):
    """Suggests the plan's jobs, at most ``at_once`` at a time, and records their results in the ledger."""

    def __init__(self, plan: Plan, ledger: Ledger, at_once: int, say: Say) -> None:
        super().__init__(metric=METRIC, mode="max")
        self._plan, self._ledger, self._at_once, self._say = plan, ledger, at_once, say
        self._runs: dict[str, str] = {}  # Tune's id of a trial to the run's name

    def suggest(self, trial_id: str) -> dict[str, Any] | str | None:
        if len(self._runs) >= self._at_once:
            return None
        job = self._plan.next()
        if job is None:
            return Searcher.FINISHED if self._plan.done() else None
        self._runs[trial_id] = job.stem
        return {"job": str(job)}

    def on_trial_result(self, trial_id: str, result: dict[str, Any]) -> None:
        name = self._runs[trial_id]
        if result["step"]:
            self._plan.report(name, result["step"], result[METRIC])

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        name = self._runs.pop(trial_id)
        last = result or {}
        if last.get("step"):
            self._plan.report(name, last["step"], last[METRIC])
        if error or "failed" in last:
            state, why = "failed", str(last.get("failed", "the trial has ended with an error"))
        else:
            state, why = ("finished" if last.get("finished") else "stopped"), ""
        terms = {key.removeprefix("terms/"): value for key, value in last.items() if key.startswith("terms/")}
        self._plan.end(name, state=state, terms=terms, score=last.get("score"), why=why)
        self._say(_line(self._ledger, name))

    def set_max_concurrency(self, max_concurrent: int) -> bool:
        self._at_once = max_concurrent
        return True

    def save(self, checkpoint_path: str) -> None:
        """Nothing: the ledger has it all."""

    def restore(self, checkpoint_path: str) -> None:
        """Nothing: the ledger has it all."""


class ResumableASHA(ASHAScheduler):
    """ASHA (Li et al. 2020) over the first seed of every candidate.

    The default configuration counts in the rungs but is never stopped, since the best is compared with it; further
    seeds are of candidates that have passed all rungs. Ray Tune forgets a scheduler's rungs when a sweep is restored;
    they are filled again from the ledger, under the run's name in place of Tune's trial id.
    """

    def __init__(self, search: EncoderSearch, total_steps: int, ledger: Ledger) -> None:
        super().__init__(
            time_attr="step",
            metric=METRIC,
            mode="max",
            max_t=max(total_steps, search.grace),
            grace_period=search.grace,
            reduction_factor=search.reduction,
            stop_last_trials=False,
        )
        self._total, self._ledger = total_steps, ledger
        for run in list(ledger.runs.values()):
            if run.seed == 0 and run.reports:
                known = SimpleNamespace(trial_id=run.name)
                super().on_trial_add(None, known)
                for step, value in run.reports:
                    if step < total_steps:
                        super().on_trial_result(None, known, {"step": step, METRIC: value})

    def on_trial_add(self, tune_controller: Any, trial: Any) -> None:
        super().on_trial_add(tune_controller, _named(trial))

    def on_trial_result(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> str:
        run = self._ledger.runs[_named(trial).trial_id]
        # A run at its last step has nothing left to save.
        if run.seed or not 0 < result["step"] < self._total or "finished" in result or "failed" in result:
            return str(TrialScheduler.CONTINUE)
        decision = super().on_trial_result(tune_controller, _named(trial), result)
        return str(TrialScheduler.CONTINUE if run.candidate == DEFAULT else decision)

    def on_trial_complete(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> None:
        self.on_trial_remove(tune_controller, trial)

    def on_trial_remove(self, tune_controller: Any, trial: Any) -> None:
        with suppress(KeyError):  # a trial that was removed when it completed
            super().on_trial_remove(tune_controller, _named(trial))


def _named(trial: Any) -> SimpleNamespace:
    return SimpleNamespace(trial_id=Path(trial.config["job"]).stem)


def _line(ledger: Ledger, name: str) -> str:
    run = ledger.runs[name]
    ended = {"finished": "finished", "stopped": "stopped early", "failed": f"failed: {run.why}"}[run.state]
    at = f", coarse AUC {run.reports[-1][1]:.3f} after {run.reports[-1][0]} steps" if run.reports else ""
    score = f", objective {run.score:.4f}" if run.score is not None else ""
    return f"{name} {ended}{at}{score}"
