"""The second level: detector trials on the kept features of finished encoders. No training, no image work.

One Optuna study a configuration of the encoder. A trial fits one detector to the features of each of its seeds, in one
Ray task; its score is the mean over them.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import optuna
import ray

from blades_dist.config import FitConfig
from blades_dist.settings import present_key
from blades_dist.tuning.config import Objective, SweepConfig, applied, defaults
from blades_dist.tuning.encoders import SweepError
from blades_dist.tuning.features import faces_of
from blades_dist.tuning.ledger import DEFAULT, Ledger, append_line, read_lines
from blades_dist.tuning.objective import Terms, TrialFeatures, mean_terms, score, terms
from blades_dist.tuning.plan import ENCODERS
from blades_dist.tuning.space import applies, suggest

FOLDER = "detectors"


@dataclass(frozen=True)
class Row:
    """One detector trial: ``values`` by key, means over seeds of ``terms`` and ``score``, and each seed's own score.

    ``error`` says why it could not be fitted, "" if it was; ``seconds`` are those of its task.
    """

    candidate: int
    number: int
    values: dict[str, Any]
    terms: Terms = field(default_factory=dict)
    score: float | None = None
    by_seed: list[float] = field(default_factory=list)
    seconds: float = 0.0
    error: str = ""


def search_detectors(config: SweepConfig, ledger: Ledger, say: Callable[[str], None] = print) -> list[Row]:
    """Every trial on every candidate, those of earlier starts included; needs a connection to Ray.

    Raises:
        SweepError: no detector could be fitted.
    """
    rows: list[Row] = []
    for candidate in chosen(config, ledger):
        own = _search(config, ledger, candidate, _starts(config, rows), say)
        best = max((row.score for row in own if row.score is not None), default=None)
        what = "no detector could be fitted" if best is None else f"best objective {best:.4f}"
        say(f"detectors on c{candidate:03d}: {len(own)} trials, {what}")
        rows += own
    if not any(row.score is not None for row in rows):
        raise SweepError(f"no detector could be fitted; the first of them: {rows[0].error}")
    return rows


def chosen(config: SweepConfig, ledger: Ledger) -> list[int]:
    """Candidates that are searched on: the default, then the best by their objective with the default detector."""
    measured = [number for number in ledger.finished(config.encoders.seeds) if ledger.score(number) is not None]
    order = sorted(measured, key=lambda number: (number != DEFAULT, -(ledger.score(number) or 0.0)))
    return order if config.detectors.encoders is None else order[: config.detectors.encoders + 1]


def encoders_of(config: SweepConfig, ledger: Ledger, candidate: int) -> list[Path]:
    """Encoder folders of a candidate, one a seed."""
    return [config.folder / ENCODERS / f"{config.name}-{run.name}" / "encoder" for run in ledger.of(candidate)]


def detector_config(config: SweepConfig, values: dict[str, Any]) -> FitConfig:
    """The base detector with the values of a trial."""
    found: FitConfig = applied(config.fit, values)
    return found


def _search(
    config: SweepConfig, ledger: Ledger, candidate: int, starts: Sequence[dict[str, Any]], say: Callable[[str], None]
) -> list[Row]:
    file = config.folder / FOLDER / f"c{candidate:03d}.jsonl"
    rows = [_row_of(line) for line in read_lines(file)]
    if len(rows) >= config.detectors.trials:
        return rows
    space = config.detectors.space
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    sampler = optuna.samplers.TPESampler(seed=config.seed + 1000 * candidate + len(rows), constant_liar=True)
    study = optuna.create_study(direction="maximize", sampler=sampler)
    for row in rows:
        study.add_trial(frozen(config, row))
    known = [row.values for row in rows]
    for values in starts:
        if values not in known:
            study.enqueue_trial(values)
    faces = [faces_of(folder, config) for folder in encoders_of(config, ledger, candidate)]
    shared = ray.put(faces)
    slots = max(1, int(ray.cluster_resources().get("CPU", 1)))
    ended = {row.number for row in rows}  # in the order of their ends, so not the first so many
    numbers = iter([number for number in range(config.detectors.trials) if number not in ended])
    running: dict[Any, tuple[int, optuna.Trial, dict[str, Any]]] = {}
    while True:
        while len(running) < slots and (number := next(numbers, None)) is not None:
            trial = study.ask()
            values = suggest(trial, space, config.fit.kind)
            task = _trial.remote(shared, config.fit.model_dump(), values, config.objective.model_dump())
            running[task] = number, trial, values
        if not running:
            return sorted(rows, key=lambda row: row.number)
        (done,), _ = ray.wait(list(running), num_returns=1)
        number, trial, values = running.pop(done)
        parts, seconds, error = ray.get(done)
        row = _row(candidate, number, values, parts, seconds, error, config.objective)
        append_line(file, asdict(row))
        rows.append(row)
        state = optuna.trial.TrialState.FAIL if row.score is None else None
        study.tell(trial, row.score, state=state)


def _row_of(line: dict[str, Any]) -> Row:
    """A stored trial, its values by the keys of today."""
    return Row(**line | {"values": {present_key(FitConfig, key): value for key, value in line["values"].items()}})


def frozen(config: SweepConfig, row: Row) -> optuna.trial.FrozenTrial:
    """A row as a trial of an Optuna study."""
    space = {key: config.detectors.space[key].distribution() for key in row.values}
    state = optuna.trial.TrialState.FAIL if row.score is None else optuna.trial.TrialState.COMPLETE
    return optuna.trial.create_trial(params=row.values, distributions=space, value=row.score, state=state)


def _starts(config: SweepConfig, rows: Sequence[Row]) -> list[dict[str, Any]]:
    """Where a study begins: the default detector where it is a point of the space, and what was best elsewhere."""
    space = config.detectors.space
    plain = defaults(config.fit, space)
    kind = str(plain.get("kind", config.fit.kind))
    default = {key: value for key, value in plain.items() if applies(key, kind)}
    found = [default] if all(space[key].contains(value) for key, value in default.items()) else []
    best = max((row for row in rows if row.score is not None), key=lambda row: row.score or 0.0, default=None)
    return found if best is None or best.values in found else [*found, best.values]


def _row(
    candidate: int,
    number: int,
    values: dict[str, Any],
    parts: list[Terms],
    seconds: float,
    error: str,
    objective: Objective,
) -> Row:
    if error:
        return Row(candidate, number, values, seconds=seconds, error=error)
    own = [score(part, objective) for part in parts]
    return Row(candidate, number, values, mean_terms(parts), sum(own) / len(own), own, seconds)


@ray.remote(num_cpus=1)
def _trial(
    faces: list[TrialFeatures], base: dict[str, Any], values: dict[str, Any], objective: dict[str, Any]
) -> tuple[list[Terms], float, str]:
    """Terms a seed, seconds, and why there are none."""
    from blades_dist.tuning.config import BaseDetector

    begin = time.monotonic()
    config, how = applied(BaseDetector.model_validate(base), values), Objective.model_validate(objective)
    try:
        found = [terms(config, own, config.seed + i, how) for i, own in enumerate(faces)]
    except ValueError as error:
        return [], time.monotonic() - begin, str(error)
    return found, time.monotonic() - begin, ""
