"""The pretrain job's command line: a new run, ``--resume`` of one, or a new run ``--from`` another."""

import argparse
import re
import sys
from collections.abc import Sequence
from pathlib import Path

from blades_dist.config import PretrainConfig
from blades_dist.settings import ConfigError, argument_parser, load, override, settle
from blades_dist.training import provenance

SECTION = "pretrain"
DETERMINISTIC = "train.deterministic=true"


def read_arguments(arguments: Sequence[str] | None = None, description: str | None = None) -> PretrainConfig:
    """The run that the command line asks for; ends the process, as ``settings.parse`` does, when it cannot be."""
    parser = argument_parser(PretrainConfig, SECTION, description)
    parser.add_argument("--resume", type=Path, metavar="RUN", help="go on with the run in this folder")
    parser.add_argument("--from", dest="start", type=Path, metavar="RUN", help="start a new run from this run's state")
    parser.add_argument("--epochs", metavar="N", help="with --from: +N epochs more than RUN's, or N in all")
    parser.add_argument("--deterministic", action="store_true", help="the same bits every time; slower")
    options = parser.parse_intermixed_args(arguments)
    return settle(parser, options, lambda: chosen(options))


def chosen(options: argparse.Namespace) -> PretrainConfig:
    """The configuration for parsed options.

    Raises:
        ConfigError: options that exclude each other, a run that is not there, a value that is not allowed.
    """
    overrides = [*options.overrides, *([DETERMINISTIC] if options.deterministic else [])]
    if options.resume and options.start:
        raise ConfigError("--resume goes on with a run, --from starts another one from it: give one of the two")
    if options.config and (options.resume or options.start):
        raise ConfigError("--config: the configuration is that of RUN; change it by key=value")
    if options.epochs and not options.start:
        raise ConfigError("--epochs: this is for --from RUN; a new run takes train.epochs=N")
    if options.resume:
        return resumed(options.resume, overrides)
    if options.start:
        return continued(options.start, options.epochs, overrides)
    return load(PretrainConfig, options.section, options.config, overrides)


def resumed(run: Path, overrides: Sequence[str] = ()) -> PretrainConfig:
    """The configuration of the run in the folder ``run``, to go on with.

    Raises:
        ConfigError: no run there, or an override that would make it another run.
    """
    _refuse_place(overrides, ("name", "storage"), "--resume takes them from RUN's folder")
    there = provenance.read(run)
    config = override(there, overrides)
    changed = provenance.differences(there, config)
    if changed:
        raise ConfigError(
            f"--resume {run}: these would make it another run; leave them as they are, or start a new run with --from:"
            "\n  " + "\n  ".join(changed)
        )
    return config


def continued(run: Path, epochs: str | None, overrides: Sequence[str] = ()) -> PretrainConfig:
    """The configuration of a new run that starts from the newest intact checkpoint of the run in the folder ``run``.

    Its name is ``name=`` of the overrides, else the run's with the next number behind it. A run of this name that was
    started from the same run already is gone on with, so that the same command can be given again after a failure.

    Raises:
        ConfigError: no run or no intact checkpoint there, no or nonsensical ``epochs``, a name that is taken.
    """
    _refuse_place(overrides, ("start_from", "train.epochs"), "--from and --epochs say them")
    there = provenance.read(run)
    # Imported late: it loads torch.
    from blades_dist.training import checkpoint_io

    try:
        state = checkpoint_io.verify(checkpoint_io.locate(run))["state"]
    except (FileNotFoundError, checkpoint_io.DamagedError) as error:
        raise ConfigError(f"--from {run}: {error}") from None
    whole = there.train.max_steps is None and (run / "encoder").exists()
    done = there.train.epochs if whole else state["progress"]["train"]["epoch"]
    total = _epochs(epochs, there.train.epochs, done)
    values = [f"train.epochs={total}", f"start_from={run.resolve()}"]
    # A bound in steps of the other run would end this one before it has begun.
    values += ["train.max_steps=null"] if there.train.max_steps is not None else []
    config = override(there, [*values, *overrides])
    if any(item.startswith("name=") for item in overrides):
        _check_name(config, run)
        return config
    config = _named(config, there.name, run)
    print(
        f"run {config.name} starts from {there.name} at step {state['progress']['step']}, to {total} epochs in all",
        file=sys.stderr,
    )
    return config


def _epochs(text: str | None, planned: int, done: int) -> int:
    """Epochs in all: ``+N`` counts from those that the other run was planned for."""
    found = re.fullmatch(r"(\+?)(\d+)", text or "")
    if not found:
        given = f", not {text!r}" if text else ""
        raise ConfigError(
            f"--epochs: say how far the new run goes{given}: +5 (to {planned + 5}, RUN's {planned} and 5 more), or a "
            f"number in all such as {planned + 5}"
        )
    total = int(found[2]) + (planned if found[1] else 0)
    if total <= done:
        raise ConfigError(f"--epochs: RUN has {done} epochs behind it, so that nothing is left of {total}")
    return total


def _named(config: PretrainConfig, base: str, run: Path) -> PretrainConfig:
    """``config`` under the first name that is free, or that this very run has and has not finished under."""
    stem, _, number = base.rpartition("-")
    stem, following = (stem, int(number) + 1) if stem and number.isdecimal() else (base, 2)
    while True:
        config = config.model_copy(update={"name": f"{stem}-{following}"})
        folder = config.storage / config.name
        if not folder.exists() or (_begun_from(folder, run, config) and not (folder / "encoder").exists()):
            return config
        following += 1


def _check_name(config: PretrainConfig, run: Path) -> None:
    folder = config.storage / config.name
    if folder.exists() and not _begun_from(folder, run, config):
        raise ConfigError(
            f"name: {folder} exists and is not this run started from {run}; choose another name, or leave it out"
        )


def _begun_from(folder: Path, run: Path, config: PretrainConfig) -> bool:
    """Whether the run in ``folder`` is the one of ``config``, started from ``run``."""
    try:
        there = provenance.read(folder)
    except ConfigError:
        return False
    return there.start_from == run.resolve() and not provenance.differences(there, config)


def _refuse_place(overrides: Sequence[str], keys: Sequence[str], reason: str) -> None:
    given = [key for key in keys if any(item.partition("=")[0] == key for item in overrides)]
    if given:
        raise ConfigError(f"{', '.join(given)}: {reason}")
