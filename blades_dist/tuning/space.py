"""What may vary: ranges and choices by configuration key, as Optuna's distributions."""

import math
import random
from collections.abc import Mapping
from typing import Annotated, Any

import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from pydantic import BeforeValidator, Field, model_validator

from blades_dist.config.heads import SECTIONS
from blades_dist.settings import Config

Value = bool | int | float | str | None


class Dimension(Config):
    """A range from ``low`` to ``high`` (both included; whole numbers give whole numbers), or ``choices``."""

    low: int | float | None = None
    high: int | float | None = None
    log: bool = False
    choices: list[Value] | None = None

    @model_validator(mode="after")
    def _one_form(self) -> "Dimension":
        ranged = self.low is not None and self.high is not None
        if ranged == (self.choices is not None) or (self.low is None) != (self.high is None):
            raise ValueError("give low and high, or a list of choices")
        if self.choices is not None:
            if len(self.choices) < 2 or len(set(map(repr, self.choices))) < len(self.choices):
                raise ValueError("at least two different choices are needed; fix a single value in the base instead")
            if self.log:
                raise ValueError("log: choices have no scale")
        elif not self._low < self._high or (self.log and self._low <= 0):
            raise ValueError(f"low < high is needed, and low > 0 on a logarithmic scale; got {self.low} to {self.high}")
        return self

    @property
    def _low(self) -> float:
        assert self.low is not None
        return self.low

    @property
    def _high(self) -> float:
        assert self.high is not None
        return self.high

    @property
    def whole(self) -> bool:
        return isinstance(self.low, int) and isinstance(self.high, int)

    def distribution(self) -> BaseDistribution:
        if self.choices is not None:
            return CategoricalDistribution(self.choices)
        if self.whole:
            return IntDistribution(int(self._low), int(self._high), log=self.log)
        return FloatDistribution(float(self._low), float(self._high), log=self.log)

    def ask(self, trial: optuna.Trial, key: str) -> Value:
        """A value that Optuna proposes."""
        if self.choices is not None:
            return trial.suggest_categorical(key, self.choices)
        if self.whole:
            return trial.suggest_int(key, int(self._low), int(self._high), log=self.log)
        return trial.suggest_float(key, float(self._low), float(self._high), log=self.log)

    def contains(self, value: Any) -> bool:
        """Whether a trial could have this value."""
        if self.choices is not None:
            return any(repr(value) == repr(choice) for choice in self.choices)
        number = isinstance(value, (int, float)) and not isinstance(value, bool)
        return number and self._low <= value <= self._high and (not self.whole or float(value).is_integer())

    def ends(self) -> list[Value]:
        """What has to be allowed for every value to be: both ends, or each choice."""
        return self.choices if self.choices is not None else [self.low, self.high]

    def draw(self, random: random.Random) -> Value:
        """A value at random."""
        if self.choices is not None:
            return random.choice(self.choices)
        low, high = (math.log(self._low), math.log(self._high)) if self.log else (self._low, self._high)
        value = random.uniform(low, high)
        return self._inside(math.exp(value) if self.log else value)

    def perturb(self, value: Any, random: random.Random) -> Value:
        """A value near ``value``: a fifth larger or smaller within the range, or one choice further."""
        if self.choices is None:
            return self._inside(value * random.choice((0.8, 1.25)))
        place = next((i for i, choice in enumerate(self.choices) if repr(choice) == repr(value)), 0)
        return self.choices[min(len(self.choices) - 1, max(0, place + random.choice((-1, 0, 1))))]

    def _inside(self, value: float) -> int | float:
        value = min(self._high, max(self._low, value))
        return round(value) if self.whole else value


def _dimension(given: Any) -> Any:
    return {"choices": given} if isinstance(given, list) else given


Space = Annotated[dict[str, Annotated[Dimension, BeforeValidator(_dimension)]], Field(min_length=1)]


def distributions(space: Mapping[str, Dimension]) -> dict[str, BaseDistribution]:
    return {key: dimension.distribution() for key, dimension in space.items()}


def applies(key: str, kind: str) -> bool:
    """Whether a key of the fit configuration means anything to a detector of this kind."""
    section = key.split(".")[0]
    return section not in SECTIONS or section == kind


def suggest(trial: optuna.Trial, space: Mapping[str, Dimension], kind: str) -> dict[str, Value]:
    """Values of a detector trial, ``kind`` first: keys of other kinds are not asked for."""
    values: dict[str, Value] = {}
    for key in sorted(space, key=lambda name: name != "kind"):
        if applies(key, str(values.get("kind", kind))):
            values[key] = space[key].ask(trial, key)
    return values


def get(plain: Mapping[str, Any], key: str) -> Any:
    """The value at a dotted key; None where the path ends early."""
    node: Any = plain
    for part in key.split("."):
        node = node.get(part) if isinstance(node, Mapping) else None
    return node


def put(plain: dict[str, Any], key: str, value: Any) -> None:
    """Sets the value at a dotted key; missing sections are made, so that a wrong key is found by validation."""
    *path, last = key.split(".")
    node = plain
    for part in path:
        child = node.get(part)
        node[part] = child if isinstance(child, dict) else {}
        node = node[part]
    node[last] = value
