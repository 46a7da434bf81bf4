"""Where configurations come from: Optuna's sampler, or a population's next generation."""

import logging
import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import optuna
from ray.tune.search.optuna import OptunaSearch

from blades_dist.tuning.config import EncoderSearch, SweepConfig, defaults
from blades_dist.tuning.ledger import DEFAULT, Candidate, Ledger
from blades_dist.tuning.space import distributions


@dataclass(frozen=True)
class Member:
    """A configuration, the ``run`` that trained it, and the run's last read-out; None where it has failed."""

    values: dict[str, Any]
    run: str
    value: float | None


def first_generation(search: EncoderSearch, seed: int) -> list[dict[str, Any]]:
    """Configurations at random."""
    own = random.Random(f"{seed}-0")
    return [{key: space.draw(own) for key, space in search.space.items()} for _ in range(search.candidates)]


def next_generation(
    members: Sequence[Member], search: EncoderSearch, seed: int, generation: int
) -> list[tuple[dict[str, Any], str]]:
    """For every member what it trains with next, and the run that it takes the weights of.

    Failed members are the worst. Where all have failed there is no next generation.
    """
    own = random.Random(f"{seed}-{generation}")
    alive = [i for i, member in enumerate(members) if member.value is not None]
    if not alive:
        return []
    count = max(1, round(search.exploit * len(members)))
    order = sorted(alive, key=lambda i: -float(members[i].value or 0.0))
    best = order[:count]
    worst = {i for i in order[len(order) - count :] if i not in best}
    worst |= {i for i in range(len(members)) if i not in alive}
    found = []
    for i, member in enumerate(members):
        if i not in worst:
            found.append((member.values, member.run))
            continue
        model = members[own.choice(best)]
        values = {
            key: space.draw(own) if own.random() < search.resample else space.perturb(model.values[key], own)
            for key, space in search.space.items()
        }
        found.append((values, model.run))
    return found


class Proposals(Protocol):
    """What a plan asks for further candidates, and tells of those that have ended."""

    def next(self) -> Candidate | None:
        """A further candidate; None: none now."""

    def exhausted(self) -> bool:
        """Whether there will be no further one."""

    def ended(self, candidate: int) -> None:
        """All that will be known of a candidate is in the ledger."""


class FromOptuna:
    """Ray Tune's Optuna searcher, asked for ``candidates`` configurations, rebuilt from the ledger at every start.

    Finished candidates count with their mean score over seeds, stopped ones as pruned at their last read-out.
    """

    def __init__(self, config: SweepConfig, ledger: Ledger) -> None:
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        logging.getLogger("ray.tune.search.optuna").setLevel(logging.ERROR)
        self._config, self._ledger, search = config, ledger, config.encoders
        own = [candidate for number, candidate in ledger.candidates.items() if number != DEFAULT]
        waiting = [one for one in own if ledger.state(one.number, search.seeds) == "open"]
        # Half of a short search at random; as many draws are over as candidates, so that none is drawn twice.
        sampler = optuna.samplers.TPESampler(
            seed=config.seed + 1000 * len(own), n_startup_trials=min(10, search.candidates // 2), constant_liar=True
        )
        self._search = OptunaSearch(
            distributions(search.space),
            metric="score",
            mode="max",
            sampler=sampler,
            points_to_evaluate=[one.values for one in waiting],
        )
        for one in own:
            if one not in waiting:
                self._add(one)
        for one in waiting:  # what was begun before takes its place in the study again
            self._search.suggest(str(one.number))
        if DEFAULT in ledger.candidates and ledger.state(DEFAULT, search.seeds) == "finished":
            self.ended(DEFAULT)

    def next(self) -> Candidate | None:
        if self.exhausted():
            return None
        number = len(self._ledger.candidates)
        values = self._search.suggest(str(number))
        assert values is not None
        return Candidate(number, values)

    def exhausted(self) -> bool:
        return len(self._ledger.candidates) > self._config.encoders.candidates

    def ended(self, candidate: int) -> None:
        if candidate == DEFAULT:
            space, values = self._config.encoders.space, defaults(self._config.pretrain, self._config.encoders.space)
            # A default outside of the space is compared with, but is no point of the search.
            if all(dimension.contains(values[key]) for key, dimension in space.items()):
                self._add(Candidate(DEFAULT, values))
            return
        state = self._ledger.state(candidate, self._config.encoders.seeds)
        for i, value in enumerate(self._curve(candidate), 1):
            self._search.on_trial_result(str(candidate), {"score": value, "training_iteration": i})
        score = self._ledger.score(candidate) if state == "finished" else None
        result = None if score is None else {"score": score}
        self._search.on_trial_complete(str(candidate), result, error=state == "failed")

    def _add(self, candidate: Candidate) -> None:
        state = self._ledger.state(candidate.number, self._config.encoders.seeds)
        score = self._ledger.score(candidate.number) if state == "finished" else None
        values: dict[str, Any] = {key: candidate.values[key] for key in self._config.encoders.space}
        self._search.add_evaluated_point(
            values,
            score,  # None where it did not finish
            error=state == "failed",
            pruned=state == "stopped",
            intermediate_values=self._curve(candidate.number),
        )

    def _curve(self, candidate: int) -> list[float]:
        runs = self._ledger.of(candidate)
        return [value for _, value in runs[0].reports] if runs else []


class FromPopulation:
    """Generations of ``candidates`` members; the next one begins when every member of the last has ended."""

    def __init__(self, config: SweepConfig, ledger: Ledger) -> None:
        self._config, self._ledger = config, ledger

    def next(self) -> Candidate | None:
        search = self._config.encoders
        place = len(self._ledger.candidates) - 1  # the default is no member
        generation, member = divmod(place, search.candidates)
        if generation >= search.generations:
            return None
        if generation == 0:
            values, parent = first_generation(search, self._config.seed)[member], ""
        else:
            found = self._following(generation)
            if not found:
                return None
            values, parent = found[member]
        return Candidate(len(self._ledger.candidates), values, generation, parent)

    def exhausted(self) -> bool:
        members = self._members(self._reached())
        full = len(members) == self._config.encoders.candidates
        last = self._reached() == self._config.encoders.generations - 1
        failed = full and all(self._ledger.state(one.number, 1) == "failed" for one in members)
        return (full and last) or failed

    def ended(self, candidate: int) -> None:
        pass

    def _reached(self) -> int:
        return max((one.generation for one in self._ledger.candidates.values() if one.number != DEFAULT), default=0)

    def _members(self, generation: int) -> list[Candidate]:
        own = (one for number, one in self._ledger.candidates.items() if number != DEFAULT)
        return [one for one in own if one.generation == generation]

    def _following(self, generation: int) -> list[tuple[dict[str, Any], str]]:
        members = []
        for one in self._members(generation - 1):
            state, runs = self._ledger.state(one.number, 1), self._ledger.of(one.number)
            if state == "open" or not runs:
                return []
            value = runs[0].reports[-1][1] if state == "finished" and runs[0].reports else None
            members.append(Member(one.values, runs[0].name, value))
        return next_generation(members, self._config.encoders, self._config.seed, generation)
