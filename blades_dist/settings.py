"""Reading a typed configuration: YAML section, dotted overrides, errors that name the key."""

import argparse
import contextlib
import json
import logging
import os
import re
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path
from types import UnionType
from typing import Any, ClassVar, TypeVar, Union, get_args, get_origin

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError, model_validator

_log = logging.getLogger(__name__)

_OVERRIDE = re.compile(r"[a-z_][\w.]*=")


class ConfigError(ValueError):
    """A configuration that cannot be used; the message names the key, the problem and what is allowed."""


class Config(BaseModel):
    """Base of every section: immutable, and unknown keys are refused.

    ``renamed`` maps former keys of a section to present ones. A former key is read for one version, with one line in
    the log that names the present one, wherever a configuration comes from: a file, an override, a stored run.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)
    renamed: ClassVar[Mapping[str, str]] = {}

    @classmethod
    def sections(cls) -> dict[str, type["Config"]]:
        """The sections inside this one by their key."""
        found = {}
        for name, field in cls.model_fields.items():
            union = get_origin(field.annotation) in (Union, UnionType)  # Section | None
            for item in get_args(field.annotation) if union else (field.annotation,):
                if isinstance(item, type) and issubclass(item, Config):
                    found[name] = item
        return found

    @model_validator(mode="before")
    @classmethod
    def _present_keys(cls, values: Any) -> Any:
        return present(cls, values) if isinstance(values, Mapping) else values


Stage = TypeVar("Stage", bound=Config)


def parse(
    stage: type[Stage],
    section: str,
    arguments: Sequence[str] | None = None,
    description: str | None = None,
    positional: Sequence[str] = (),
) -> Stage:
    """Reads ``--config FILE key.sub=value ...`` and returns the stage's validated configuration.

    ``section`` is the key of the preset file that belongs to this stage, unless ``--section`` names another. With
    ``--print-config`` the resolved whole is printed as YAML and the process exits. A configuration that cannot be
    used ends the process with status 2 and a message naming the key. Values of the keys ``positional`` may be given
    without them, in this order.
    """
    parser = argument_parser(stage, section, description)
    options = parser.parse_intermixed_args(arguments)
    overrides = named(options.overrides, *positional)
    return settle(parser, options, lambda: load(stage, options.section, options.config, overrides))


def named(arguments: Sequence[str], *keys: str) -> list[str]:
    """The arguments with ``key=`` before each path that is given without: the first for the first of ``keys``, ..."""
    left, found = list(keys), []
    for item in arguments:
        if left and not _OVERRIDE.match(item):
            # Quoted, and never a number: YAML would read a folder named 2026 as one.
            item = f"{left.pop(0)}={json.dumps(os.path.join('.', item))}"
        found.append(item)
    return found


def argument_parser(stage: type[Config], section: str, description: str | None = None) -> argparse.ArgumentParser:
    """What ``parse`` reads, for a job that has options of its own; its result goes to ``settle``."""
    parser = argparse.ArgumentParser(
        description=(description or stage.__doc__ or "").strip(), formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--config", type=Path, help="YAML file with a section per stage")
    parser.add_argument("--section", default=section, help="section of the file to read; default: %(default)s")
    parser.add_argument("--print-config", action="store_true", help="print the resolved configuration and exit")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="e.g. train.lr=1e-4")
    return parser


def settle(parser: argparse.ArgumentParser, options: argparse.Namespace, make: Callable[[], Stage]) -> Stage:
    """The configuration that ``make`` returns; prints it with ``--print-config``, ends the process as ``parse`` does
    when it raises ConfigError."""
    try:
        config = make()
    except ConfigError as error:
        parser.exit(2, f"{parser.prog}: {error}\n")
    if options.print_config:
        yaml.safe_dump({options.section: config.model_dump(mode="json")}, sys.stdout, sort_keys=False)
        parser.exit(0)
    return config


def override(config: Stage, overrides: Sequence[str]) -> Stage:
    """``config`` with dotted overrides; raises as ``load``."""
    values = config.model_dump(mode="json")
    for item in overrides:
        _apply(type(config), values, item)
    return validate(type(config), values)


def load(stage: type[Stage], section: str, file: Path | None = None, overrides: Sequence[str] = ()) -> Stage:
    """Section ``section`` of a YAML file with dotted overrides, validated.

    Raises:
        ConfigError: file missing or not YAML, malformed override, unknown key, or a value that is not allowed.
    """
    values = present(stage, _read(file, section)) if file else {}
    for override in overrides:
        _apply(stage, values, override)
    return validate(stage, values)


def validate(stage: type[Stage], values: dict[str, Any]) -> Stage:
    """The typed configuration of plain values; see ``load`` for what is raised."""
    try:
        return stage.model_validate(values)
    except ValidationError as error:
        raise ConfigError("\n".join(_explain(stage, item) for item in error.errors())) from None


def present(stage: type[Config], values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """``values`` with present keys for former ones, in the sections inside too; every former one is told once.

    Raises:
        ConfigError: both are given.
    """
    found, sections = {}, stage.sections()
    for key, value in values.items():
        name = stage.renamed.get(key, key)
        if name != key:
            if name in values:
                raise ConfigError(f"{prefix}{key}: the former name of {prefix}{name}, which is given too; give one")
            _tell_renamed(f"{prefix}{key}", f"{prefix}{name}")
        inside = name in sections and isinstance(value, Mapping)
        found[name] = present(sections[name], value, f"{prefix}{name}.") if inside else value
    return found


def present_key(stage: type[Config], key: str) -> str:
    """A dotted key with present names for former ones, told as by ``present``; one that is unknown stays as it is."""
    node: type[Config] | None = stage
    found: list[str] = []
    for part in key.split("."):
        found.append(node.renamed.get(part, part) if node is not None else part)
        node = node.sections().get(found[-1]) if node is not None else None
    name = ".".join(found)
    if name != key:
        _tell_renamed(key, name)
    return name


@cache
def _tell_renamed(former: str, now: str) -> None:
    _log.warning("configuration: %s is now %s; the former name will not be read by the next version", former, now)


def flat(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """The leaves of nested sections by dotted keys."""
    for key, value in values.items():
        if isinstance(value, dict):
            yield from flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def among(key: str, sections: Sequence[str]) -> bool:
    """Whether the dotted ``key`` is one of ``sections`` or lies in one."""
    return any(key == section or key.startswith(f"{section}.") for section in sections)


def differences(there: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """What two mappings of dotted keys to values do not share, a line a key."""
    return [
        f"{key}: {there.get(key)!r} there, {now.get(key)!r} now"
        for key in sorted(there.keys() | now.keys())
        if there.get(key) != now.get(key)
    ]


def _read(file: Path, section: str) -> dict[str, Any]:
    try:
        content = yaml.safe_load(file.read_text())
    except OSError as error:
        raise ConfigError(f"cannot read {file}: {error.strerror}") from None
    except yaml.YAMLError as error:
        raise ConfigError(f"{file} is not YAML: {error}") from None
    if not isinstance(content, dict) or not isinstance(content.get(section), dict):
        found = ", ".join(map(str, content)) if isinstance(content, dict) else type(content).__name__
        raise ConfigError(f"{file} has no section {section!r}; it has: {found}")
    return dict(content[section])


def _apply(stage: type[Config], values: dict[str, Any], override: str) -> None:
    key, separator, text = override.partition("=")
    if not separator or not key:
        raise ConfigError(f"override {override!r} is not of the form key.sub=value")
    *path, last = present_key(stage, key).split(".")
    node = values
    for part in path:
        child = node.get(part)
        node[part] = dict(child) if isinstance(child, dict) else {}
        node = node[part]
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ConfigError(f"override {override!r}: the value is not YAML: {error}") from None
    # YAML 1.1 reads 1e-4 (no dot) as text; a person means the number.
    if isinstance(value, str):
        with contextlib.suppress(ValueError):
            value = float(value)
    node[last] = value


def _explain(stage: type[Config], item: Any) -> str:
    key = ".".join(str(part) for part in item["loc"])
    if item["type"] == "extra_forbidden":
        return f"unknown key {key!r}; allowed here: {', '.join(_allowed(stage, item['loc'][:-1]))}"
    message = item["msg"].removeprefix("Value error, ")
    given = "" if item["type"] in ("missing", "value_error") else f" (given: {item['input']!r})"
    return f"{key}: {message}{given}" if key else message


def _allowed(stage: type[Config], path: Sequence[Any]) -> list[str]:
    node = stage
    for part in path:
        field = node.model_fields.get(part)
        inside = node.sections().get(part) or (next(_configs(field.annotation), None) if field else None)
        node = inside or node  # a key of a dictionary of sections leads no deeper
    return list(dict.fromkeys([*node.model_fields, *node.sections()]))


def _configs(annotation: Any) -> Iterator[type[Config]]:
    """Sections anywhere in a field's annotation."""
    if isinstance(annotation, type) and issubclass(annotation, Config):
        yield annotation
    for item in get_args(annotation):
        yield from _configs(item)
