"""A sweep from beginning to end; the same name and storage go on where it was left, however it ended."""

from pathlib import Path

import yaml

from blades_dist.data.records import read_manifest
from blades_dist.detect.calibrate import check_supported
from blades_dist.detect.fit import fit_detector
from blades_dist.files import alone, write_atomically
from blades_dist.progress import Say
from blades_dist.settings import ConfigError, among, differences, flat
from blades_dist.training import launch
from blades_dist.tuning.compare import Contestant, compare
from blades_dist.tuning.config import TEST, SweepConfig
from blades_dist.tuning.detectors import Row, detector_config, encoders_of, search_detectors
from blades_dist.tuning.encoders import SweepError, search_encoders
from blades_dist.tuning.features import extraction
from blades_dist.tuning.ledger import DEFAULT, Ledger
from blades_dist.tuning.plan import ENCODERS
from blades_dist.tuning.results import SweepResult, write_results

CONFIG = "config.yaml"
BEST = "best"  # folder of the bundle
# What may differ when a sweep of the same name goes on.
_FREE = (
    "ray",
    "concurrent",
    "driver_cpus",
    "bootstrap",
    "encoders.candidates",
    "detectors.trials",
    "detectors.encoders",
)


def check(config: SweepConfig) -> SweepConfig:
    """The configuration with absolute paths, once it is known to fit; needs no cluster.

    Raises:
        ConfigError: it does not fit the data, or the sweep that has this name already.
    """
    pretrain = config.pretrain.model_copy(update={"storage": config.folder / ENCODERS, "name": config.name})
    pretrain = launch.check(pretrain)
    generated = config.generated.resolve() if config.generated is not None else None
    config = config.model_copy(
        update={"pretrain": pretrain, "storage": pretrain.storage.parent.parent, "generated": generated}
    )
    try:
        manifest = read_manifest(pretrain.data.shards)
        for split in ("train", "val", "calibration", TEST):
            manifest.split(split)
        rates = [config.fit.fpr, *(config.detectors.space["fpr"].ends() if "fpr" in config.detectors.space else [])]
        check_supported(manifest.rows["calibration"], min(float(rate) for rate in rates if rate is not None))
        if generated is not None:
            others = read_manifest(generated)
            if others.kind != "generated":
                raise ValueError(f"generated: {generated} holds {others.kind}")
            needed = [config.generated_split] if config.objective.kind == "supervised" else []
            for split in (*needed, TEST):
                others.split(split)
    except (OSError, ValueError) as error:
        raise ConfigError(str(error)) from None
    _check_same(config)
    return config


def sweep(config: SweepConfig, say: Say = print) -> Path:
    """Runs, or resumes, a checked sweep; returns its page. Needs a connection to Ray.

    Raises:
        ConfigError: not one encoder run fits into the cluster, or another process drives this sweep.
        SweepError: there is nothing to choose from.
    """
    config.folder.mkdir(parents=True, exist_ok=True)
    refusal = ConfigError(f"sweep {config.folder.name!r} is being driven by another process; wait for it")
    with alone(config.folder, refusal):
        write_atomically(config.folder / CONFIG, yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False))
        ledger = search_encoders(config, say)
        rows = search_detectors(config, ledger, say)
        best = max((row for row in rows if row.score is not None), key=lambda row: row.score or 0.0)
        say(f"best: encoder c{best.candidate:03d}, detector {best.values}, objective {best.score:.4f}")
        comparison = compare(config, contestants(config, ledger, rows, best))
        bundle = fit_best(config, ledger, best, say)
        page = write_results(SweepResult(config, ledger, rows, best, comparison, bundle))
    say(comparison.verdict())
    say(f"bundle: {bundle}; summary: {page}")
    return page


def contestants(config: SweepConfig, ledger: Ledger, rows: list[Row], best: Row) -> list[Contestant]:
    """The default, the default's encoder with the best detector found on it, and the best of all."""
    default = encoders_of(config, ledger, DEFAULT)
    found = [Contestant("default", default, config.fit)]
    on_default = [row for row in rows if row.candidate == DEFAULT and row.score is not None]
    if on_default and best.candidate != DEFAULT:
        row = max(on_default, key=lambda one: one.score or 0.0)
        found.append(Contestant("default encoder, searched detector", default, detector_config(config, row.values)))
    return [
        *found,
        Contestant("best found", encoders_of(config, ledger, best.candidate), detector_config(config, best.values)),
    ]


def fit_best(config: SweepConfig, ledger: Ledger, best: Row, say: Say) -> Path:
    """The bundle of the best trial, on the seed that did best, made as any detector is."""
    seed = max(range(len(best.by_seed)), key=best.by_seed.__getitem__)
    output = config.folder / BEST
    fit = detector_config(config, best.values)
    fit = fit.model_copy(
        update={
            "encoder": str(encoders_of(config, ledger, best.candidate)[seed]),
            "shards": config.pretrain.data.shards,
            "output": output,
            "seed": fit.seed + seed,
            "extract": extraction(config),
        }
    )
    fit_detector(fit, say)
    return output


def _check_same(config: SweepConfig) -> None:
    file = config.folder / CONFIG
    if not file.is_file():
        return
    try:
        old = SweepConfig.model_validate(yaml.safe_load(file.read_text())).model_dump(mode="json")
    except ValueError:
        old = yaml.safe_load(file.read_text())
    there, now = (
        {key: value for key, value in flat(values) if not among(key, _FREE)}
        for values in (old, config.model_dump(mode="json"))
    )
    changed = differences(there, now)
    if changed:
        raise ConfigError(
            f"sweep {config.name!r} exists in {config.folder} with another configuration; choose another name, or "
            "delete that folder to start anew:\n  " + "\n  ".join(changed)
        )


__all__ = ["ConfigError", "SweepError", "check", "sweep"]
