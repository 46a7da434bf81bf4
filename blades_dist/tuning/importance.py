"""How much each key mattered, by Optuna's fANOVA over trials that are comparable."""

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import optuna

from blades_dist.tuning.config import SweepConfig
from blades_dist.tuning.detectors import Row
from blades_dist.tuning.ledger import DEFAULT, Ledger
from blades_dist.tuning.space import Dimension

LEAST = 5  # trials; fewer say nothing


@dataclass(frozen=True)
class Importance:
    """Shares by key, which sum to 1, of the variance of ``of`` over ``trials`` trials."""

    of: str
    trials: int
    shares: dict[str, float]


def importances(config: SweepConfig, ledger: Ledger, rows: Sequence[Row]) -> list[Importance]:
    """Of the encoders' keys and of the detectors', those that can be told."""
    found = [_encoders(config, ledger), _detectors(config, rows)]
    return [one for one in found if one is not None]


def first_rung(ledger: Ledger, candidate: int) -> float | None:
    """A candidate's first read-out: the one number that all have, stopped or not."""
    runs = ledger.of(candidate)
    return runs[0].reports[0][1] if runs and runs[0].reports else None


def _encoders(config: SweepConfig, ledger: Ledger) -> Importance | None:
    points = []
    for number, candidate in ledger.candidates.items():
        value = first_rung(ledger, number)
        if number != DEFAULT and value is not None and not candidate.parent:
            points.append((candidate.values, value))
    return _shares("coarse AUC at the first read-out", points, config.encoders.space)


def _detectors(config: SweepConfig, rows: Sequence[Row]) -> Importance | None:
    # Keys that every trial has, with the encoder as one more; what only one kind has is not comparable over all.
    fitted = [row for row in rows if row.score is not None]
    common = [key for key in config.detectors.space if all(key in row.values for row in fitted)]
    space: dict[str, Dimension] = {key: config.detectors.space[key] for key in common}
    names = sorted({row.candidate for row in fitted})
    points = [({key: row.values[key] for key in common}, row.score or 0.0) for row in fitted]
    if len(names) > 1:
        space["encoder"] = Dimension(choices=[f"c{name:03d}" for name in names])
        points = [
            ({**values, "encoder": f"c{row.candidate:03d}"}, value)
            for row, (values, value) in zip(fitted, points, strict=True)
        ]
    return _shares("objective of a detector trial", points, space)


def _shares(
    of: str, points: Sequence[tuple[Mapping[str, Any], float]], space: Mapping[str, Dimension]
) -> Importance | None:
    if len(points) < LEAST or len({value for _, value in points}) < 2 or not space:
        return None
    study = optuna.create_study(direction="maximize")
    distributions = {key: dimension.distribution() for key, dimension in space.items()}
    for values, value in points:
        params = {key: values[key] for key in space}
        study.add_trial(optuna.trial.create_trial(params=params, distributions=distributions, value=value))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        evaluator = optuna.importance.FanovaImportanceEvaluator(seed=0)
        shares = optuna.importance.get_param_importances(study, evaluator=evaluator)
    return Importance(of, len(points), {key: float(share) for key, share in shares.items()})
