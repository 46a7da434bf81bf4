"""Whether a configuration has a dotted key, and whether the key takes a value: for texts that name them."""

import contextlib
import functools
import re
import types
import typing
from collections.abc import Iterator, Sequence
from typing import Annotated, Any

import yaml
from pydantic import BaseModel, ValidationError

from blades_dist import config
from blades_dist.tuning.config import SweepConfig

STAGES = {
    "simulate": config.SimulateConfig,
    "ingest": config.IngestConfig,
    "ingest_generated": config.IngestConfig,
    "pretrain": config.PretrainConfig,
    "sweep": SweepConfig,
    "fit": config.FitConfig,
    "import": config.ImportConfig,
    "evaluate": config.EvaluateConfig,
    "robustness": config.RobustnessConfig,
    "serve": config.ServeConfig,
}
# In capitals, in dots or in angle brackets: the reader's own.
PLACEHOLDER = re.compile(r"\.\.|…|<|\b[A-Z][A-Z_]+\b|\b[NXn]\b")


def options(annotation: Any) -> Iterator[Any]:
    """The types that a union or an annotated type may be."""
    origin = typing.get_origin(annotation)
    if origin is Annotated:
        yield from options(typing.get_args(annotation)[0])
    elif origin in (typing.Union, types.UnionType):
        for option in typing.get_args(annotation):
            yield from options(option)
    else:
        yield annotation


def owner(model: Any, key: Sequence[str]) -> tuple[type[BaseModel], Sequence[str]] | None:
    """The innermost configuration class that a dotted key leads to, and the rest of the key; None: no such key."""
    for option in options(model):
        if not (isinstance(option, type) and issubclass(option, BaseModel) and key[0] in option.model_fields):
            continue
        there = option.model_fields[key[0]]
        if len(key) == 1 or any(typing.get_origin(inner) is dict for inner in options(there.annotation)):
            return option, key
        if found := owner(there.annotation, key[1:]):
            return found
    return None


@functools.cache
def sections() -> tuple[type[BaseModel], ...]:
    """Every configuration class that a job reads, whole or as a part."""
    found: list[type[BaseModel]] = list(STAGES.values())
    for model in found:
        for there in model.model_fields.values():
            found += [
                option
                for option in options(there.annotation)
                if isinstance(option, type) and issubclass(option, BaseModel) and option not in found
            ]
    return tuple(dict.fromkeys(found))


@functools.cache
def openers() -> frozenset[str]:
    """What a dotted key begins with: a stage, or a section or dictionary of one."""
    inner = {
        name
        for model in sections()
        for name, there in model.model_fields.items()
        if any(
            typing.get_origin(option) is dict or (isinstance(option, type) and issubclass(option, BaseModel))
            for option in options(there.annotation)
        )
    }
    return frozenset(inner | STAGES.keys())


def value_of(text: str) -> Any:
    """What a job reads in an override's text."""
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError:
        return text
    with contextlib.suppress(ValueError):
        return float(value) if isinstance(value, str) else value
    return value


def wrong_key(key: str, text: str | None, stages: Sequence[type[BaseModel]]) -> str | None:
    """What is wrong with ``key=text``, or with the key alone, in all of ``stages``."""
    name, *rest = key.split(".")
    if name in STAGES and rest and owner(STAGES[name], rest):
        return wrong_key(".".join(rest), text, [STAGES[name]])
    owners = [found for stage in stages if (found := owner(stage, [name, *rest]))]
    if not owners:
        return f"no configuration has the key {key!r}"
    if text is None or PLACEHOLDER.search(text) or any(_takes(model, inner, value_of(text)) for model, inner in owners):
        return None
    return f"{key}: {text!r} is not allowed"


def _takes(model: type[BaseModel], key: Sequence[str], value: Any) -> bool:
    for part in reversed(key):
        value = {part: value}
    try:
        model.model_validate(value)
    except ValidationError as error:
        return not any(item["loc"][:1] == (key[0],) for item in error.errors())
    return True
