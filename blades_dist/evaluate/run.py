"""The evaluation of any number of detectors on one test set: audit, scores, tables, plots, report."""

import datetime
import importlib.metadata
import json
import os
import platform
import re
import shutil
import tempfile
from collections import Counter
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from blades_dist import __version__
from blades_dist.config import EvaluateConfig
from blades_dist.data.records import Manifest, read_manifest
from blades_dist.data.simulation.generators import FAMILIES
from blades_dist.detect.bundle import Detector, load_detector
from blades_dist.evaluate import parity, pictures, report, scoring, tables
from blades_dist.evaluate.scoring import SPLIT, Scored, Sides

Loaded = TypeVar("Loaded")


class EvaluationError(ValueError):
    """What was given cannot be evaluated; the message names the configuration key and what to do."""


def evaluate(config: EvaluateConfig) -> Path:
    """Audits the test set, evaluates every detector on it, prints the tables and writes the report.

    The real side is the test split of ``config.shards``, the other that of ``config.generated``, by source. Written to
    ``config.output``: report.html, results.json, tables.md, tables.csv, tables.tex, plots/*.png; an earlier report
    there is replaced, and only once the new one is whole.

    Returns:
        The path of report.html.

    Raises:
        EvaluationError: a bundle, shard set or run folder is missing, damaged or of the wrong kind.
    """
    photographs, detectors, weights, pretext = _inputs(config)
    real, generated = _named("shards or generated", partial(_containers, config))
    audit = parity.audit(real, generated, config.bootstrap, config.confidence, config.seed)
    print(audit.verdict() + "\n", flush=True)
    sides = _named("shards or generated", partial(scoring.features, config, detectors))
    scored = {
        name: _named(f"detectors.{name}", partial(scoring.score, detector, sides[name]))
        for name, detector in detectors.items()
    }
    assessments = {
        name: tables.assess(
            s.real, s.generated, s.real_flags, s.generated_flags, config.bootstrap, config.confidence, config.seed
        )
        for name, s in scored.items()
    }
    main = next(iter(scored))
    found = report.Evaluation(
        created=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        simulated=_simulated(config, sides[main]),
        photographs=dict(Counter(sides[main].real.sources)),
        generated={name: len(rows) for name, rows in sides[main].rows.items()},
        remarks=_remarks(detectors, sides[main], photographs),
        audit=audit,
        assessments=assessments,
        facts={name: _facts(config.detectors[name], s, sides[name]) for name, s in scored.items()},
        tables=tables.build_tables(assessments, config.confidence),
        confidence=config.confidence,
        config=config.model_dump(mode="json"),
        versions=_versions(),
        weights=weights,
        pretext=pretext,
        plots=pictures.draw(scored, assessments, sides[main], weights, config.confidence, config.seed),
        passed_fakes=pictures.worst_fakes(config.generated, scored[main], sides[main]),
        doubted_photographs=pictures.worst_photographs(config.shards, scored[main], sides[main]),
    )
    page = _write(found, config.output)
    for line in (found.data_sentence(), *found.remarks, "", tables.to_text(found.tables), found.headline()):
        print(line)
    print(f"report: {page}", flush=True)
    return page


# Inputs --------------------------------------------------------------------------------------------------------------


def _inputs(
    config: EvaluateConfig,
) -> tuple[Manifest, dict[str, Detector], report.Weights | None, report.Pretext | None]:
    """Everything that can be missing or wrong, looked at before anything takes time."""
    if config.output.exists() and not config.output.is_dir():
        raise EvaluationError(f"output: {config.output} is not a folder")
    photographs = _named("shards", partial(_manifest, config.shards, "photographs"))
    _named("generated", partial(_manifest, config.generated, "generated"))
    detectors = {
        name: _named(f"detectors.{name}", partial(load_detector, folder)) for name, folder in config.detectors.items()
    }
    if config.history is None:
        return photographs, detectors, None, None
    return photographs, detectors, *_named("history", partial(report.read_run, config.history))


def _named(key: str, load: Callable[[], Loaded]) -> Loaded:
    try:
        return load()
    except (OSError, ValueError) as error:
        raise EvaluationError(f"{key}: {error}") from None


def _manifest(folder: Path, kind: str) -> Manifest:
    manifest = read_manifest(folder)
    if manifest.kind != kind:
        raise ValueError(f"{folder} holds {manifest.kind}, not {kind}")
    manifest.split(SPLIT)  # complains where it is empty
    return manifest


def _containers(config: EvaluateConfig) -> tuple[pa.Table, dict[str, pa.Table]]:
    generated = parity.read_containers(config.generated, SPLIT)
    names = sorted(set(generated["source"].to_pylist()))
    by_source = {name: generated.filter(pc.equal(generated["source"], name)) for name in names}
    return parity.read_containers(config.shards, SPLIT), by_source


# What is told beside the numbers -------------------------------------------------------------------------------------


def _facts(bundle: Path, scored: Scored, sides: Sides) -> report.Facts:
    info, threshold = scored.detector.info, scored.detector.threshold()
    return report.Facts(
        kind="one-class (oc)" if info.kind == "oc" else "binary (bc)",
        threshold=threshold if np.isfinite(threshold) else None,
        nominal_fpr=info.fpr,
        calibrated_on=info.calibration.n,
        bundle=f"{bundle} (id {scored.detector.id[:16]})",
        encoder=info.provenance.encoder_digest[:16],
        not_held_out=tuple(sorted(set(info.training.generated) & set(sides.rows))),
        provenance=info.provenance.model_dump(mode="json"),
    )


def _remarks(detectors: Mapping[str, Detector], sides: Sides, photographs: Manifest) -> list[str]:
    """What a reader must know before trusting the numbers."""
    found = []
    for name, detector in detectors.items():
        info = detector.info
        seen = sorted(set(info.training.generated) & set(sides.rows))
        if seen:
            found.append(
                f"{name} was trained on images of {', '.join(seen)}: its numbers on them say nothing about generators "
                "that it has not seen."
            )
        if info.provenance.manifest_digest != photographs.digest():
            found.append(
                f"{name} was fitted on another shard set than the one evaluated: whether photographs of this test "
                "split were among those it was fitted on was not checked."
            )
    photos = len(set(sides.real.paths))
    if photos < len(sides.real):
        found.append(
            f"The {len(sides.real)} faces come from {photos} photographs. Faces of one photograph are not "
            "independent, so that the intervals are a little too narrow."
        )
    return found


def _simulated(config: EvaluateConfig, sides: Sides) -> str | None:
    """What shows that the data are simulated; None if nothing does."""
    pairs = zip(sides.generated.sources, sides.generated.paths, strict=True)
    families = {source for source, path in pairs if source in FAMILIES and re.search(r"(^|/)\d{6}\.jpg$", path)}
    if families:
        return f"this project's simulator, families {', '.join(sorted(families))}"
    folders = [config.shards, config.generated]
    marked = [p for folder in folders for p in (folder, *folder.resolve().parents[:2]) if _marked(p)]
    return "a folder marked by simulation.json" if marked else None


def _marked(folder: Path) -> bool:
    return (folder / "simulation.json").is_file()


def _versions() -> dict[str, str]:
    names = ("torch", "numpy", "scikit-learn", "scipy", "matplotlib", "pyarrow")
    found = {name: importlib.metadata.version(name) for name in names}
    return {"blades_dist": __version__, "python": platform.python_version(), **found}


# Writing -------------------------------------------------------------------------------------------------------------


def _write(found: report.Evaluation, folder: Path) -> Path:
    """All files into a folder beside them first; then each takes the place of its predecessor, the page last."""
    texts = {
        "results.json": json.dumps(report.results(found), indent=1, allow_nan=False) + "\n",
        "tables.md": f"{found.audit.verdict()}\n\n{found.data_sentence()}\n\n{tables.to_markdown(found.tables)}",
        "tables.csv": tables.to_csv(found.tables),
        "tables.tex": tables.to_latex(found.tables),
        "report.html": report.to_html(found),
    }
    folder.mkdir(parents=True, exist_ok=True)
    staged = Path(tempfile.mkdtemp(prefix=".partial-", dir=folder))
    try:
        (staged / "plots").mkdir()
        for plot in found.plots:
            (staged / "plots" / f"{plot.name}.png").write_bytes(plot.light)
        for name, text in texts.items():
            (staged / name).write_text(text, encoding="utf-8")
        shutil.rmtree(folder / "plots", ignore_errors=True)
        (staged / "plots").rename(folder / "plots")
        for name in texts:
            os.replace(staged / name, folder / name)
    finally:
        shutil.rmtree(staged, ignore_errors=True)
    return folder / "report.html"
