"""The evaluation of any number of detectors on one test set: audit, scores, tables, plots, report."""

import datetime
import json
import os
import shutil
import tempfile
from collections import Counter
from collections.abc import Mapping
from functools import partial
from pathlib import Path

import numpy as np

from blades_dist.config import EvaluateConfig
from blades_dist.evaluate import parity, pictures, projection, report, table_formats, tables
from blades_dist.evaluate.assess import Assessment, assess, photographs
from blades_dist.evaluate.candidates import CandidateDetector
from blades_dist.evaluate.caveats import caveats, facts, library_versions, simulated
from blades_dist.evaluate.inputs import Inputs, build_testset, named, open_inputs
from blades_dist.evaluate.predictions import Predictions, join
from blades_dist.evaluate.scoring import (
    SPLIT,
    FacesBySide,
    Features,
    Say,
    ScoredCandidate,
    TestSet,
    index_testset,
    score_candidate,
)


def evaluate(config: EvaluateConfig, say: Say = print, inputs: Inputs | None = None) -> Path:
    """Audits the test set, evaluates every detector on it, prints the tables and writes the report.

    The test set is ``config.testset``, or the test splits of ``config.shards`` and ``config.generated``, by source;
    with ``config.equalise`` both sides go through one and the same container first. Needs a connection to Ray. Written
    to ``config.output``: report.html, results.json, tables.md, tables.csv, tables.tex, plots/*.png; an earlier report
    there is replaced, and only once the new one is whole. ``say`` gets lines of progress; ``inputs`` are those of
    ``open_inputs``, opened here when they were not before.

    Returns:
        The path of report.html.

    Raises:
        EvaluationError: a bundle, shard set or run folder is missing, damaged or of the wrong kind.
    """
    inputs = inputs or open_inputs(config)
    prepared = named("testset, shards or generated", partial(build_testset, config, inputs, say))
    test, faces = prepared.test, named("shards or generated", partial(index_testset, prepared.test))
    audits = [
        parity.audit_sets(one.real, one.generated, SPLIT, None, config.bootstrap, config.confidence, config.seed)
        for one in ([prepared.before] if prepared.before else []) + [test]
    ]
    for audit in audits:
        print(audit.verdict() + "\n", flush=True)
    features = named("shards or generated", partial(Features, inputs.candidates.values(), test, config.extract, say))
    scored = {
        name: named(f"detectors.{name}", partial(score_candidate, name, candidate, features, faces, say))
        for name, candidate in inputs.candidates.items()
    }
    assessments = {
        name: assess(found.pairs, config.bootstrap, config.confidence, config.seed) for name, found in scored.items()
    }
    main = next(iter(scored))
    subjects = {name: pictures.Subject(assessments[name], one.threshold, one.unit) for name, one in scored.items()}
    found = report.Evaluation(
        created=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        simulated=simulated(prepared.sources, faces),
        photographs=dict(Counter(faces.real.sources)),
        generated={name: len(rows) for name, rows in faces.rows.items()},
        caveats=[*prepared.caveats, *caveats(inputs.candidates, prepared, faces)],
        audit=audits[-1],
        audit_before=audits[0] if prepared.before else None,
        assessments=assessments,
        facts={name: facts(candidate, scored[name], faces) for name, candidate in inputs.candidates.items()},
        tables=tables.build_tables(assessments, config.confidence),
        confidence=config.confidence,
        config=config.model_dump(mode="json"),
        versions=library_versions(),
        weights=inputs.weights,
        pretext=inputs.pretext,
        plots=pictures.draw_plots(
            subjects, _projected(config, inputs.candidates, features, faces), inputs.weights, config.confidence
        ),
        passed_fakes=_worst_fakes(test, scored[main], faces),
        doubted_photographs=_worst_photographs(test, assessments[main], faces),
    )
    page = _write(found, config.output)
    shown = "\n".join(table.to_text() for table in found.tables)
    for line in (found.data_sentence(), *found.caveats, "", shown, found.headline()):
        print(line)
    print(f"report: {page}", flush=True)
    return page


def _projected(
    config: EvaluateConfig, candidates: Mapping[str, CandidateDetector], features: Features, faces: FacesBySide
) -> projection.Projection | None:
    """Of the first detector that has features of its own."""
    bundles = next((candidate.bundles for candidate in candidates.values() if candidate.bundles), None)
    if bundles is None:
        return None
    real, generated = (
        features.of(bundles[0], folder).plain.features for folder in (features.test.real, features.test.generated)
    )
    by_source = {name: generated[rows] for name, rows in faces.rows.items()}
    return projection.project(real, by_source, config.projection, config.seed)


def _worst_fakes(test: TestSet, main: ScoredCandidate, faces: FacesBySide) -> list[report.Mistake]:
    rows = np.concatenate([faces.rows[name] for name in main.pairs])
    predictions = join([pair.generated for pair in main.pairs.values()])
    ids, sources, paths = ([column[i] for i in rows] for column in vars(faces.generated).values())
    load = partial(pictures.stored_images, test.generated, SPLIT)
    return pictures.worst("generated", predictions, ids, sources, paths, load)


def _worst_photographs(test: TestSet, main: Assessment, faces: FacesBySide) -> list[report.Mistake]:
    """By the head of the first generator, where each has its own."""
    predictions: Predictions = photographs(main.pairs)[0]
    real, load = faces.real, partial(pictures.stored_images, test.real, SPLIT)
    return pictures.worst("photographs", predictions, real.ids, real.sources, real.paths, load)


def _write(found: report.Evaluation, folder: Path) -> Path:
    """All files into a folder beside them first; then each takes the place of its predecessor, the page last."""
    markdown = "\n".join(table.to_markdown() for table in found.tables)
    texts = {
        "results.json": json.dumps(report.results(found), indent=1, allow_nan=False) + "\n",
        "tables.md": f"{found.audit.verdict()}\n\n{found.data_sentence()}\n\n{markdown}",
        "tables.csv": table_formats.by_number(found.tables).to_csv(),
        "tables.tex": "\n".join(table.to_latex() for table in found.tables),
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
