"""The pictures of a report: plots of every detector, and the faces that the main one places worst."""

import re
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq

from blades_dist.data.records import read_manifest
from blades_dist.data.thumbnails import thumbnail
from blades_dist.detect.bundle import Detector
from blades_dist.detect.features import FeatureSet
from blades_dist.evaluate import plots, report, tables
from blades_dist.evaluate.scoring import SPLIT, Scored, Sides
from blades_dist.figures import Plot, plot

WORST = 8  # mistakes shown of each side
THUMBNAIL = 160  # pixels a side at most
PROJECTED = 1000  # faces in the projection at most
UNITS = {"oc": "log-likelihood in nats", "bc": "log-odds in nats"}


def draw(
    scored: Mapping[str, Scored],
    assessments: Mapping[str, tables.Assessment],
    main: Sides,
    weights: report.Weights | None,
    confidence: float,
    seed: int,
) -> list[Plot]:
    """ROC and scores of every detector, the weights if known, and the features of the main (first) detector."""
    drawn = []
    for i, (name, s) in enumerate(scored.items()):
        stem = f"{i + 1}-{re.sub(r'[^A-Za-z0-9_-]+', '_', name)}"
        title, unit = f"ROC of {name}", UNITS[s.detector.info.kind]
        roc = (plots.plot_roc, s.real, s.generated, assessments[name], title, confidence)
        caption = f"{title}: each generator against all photographs, with AUC and its interval."
        drawn.append(plot(f"roc-{stem}", caption, *roc, detector=name))
        title = f"Scores of {name}"
        threshold = s.detector.threshold()
        scores = (plots.plot_scores, s.real, s.generated, threshold, title, unit)
        caption = (
            f"{title}: {unit}, right is more like a photograph; what scores left of the dashed threshold is flagged. "
            "The outermost bins also hold what lies beyond the range shown."
        )
        drawn.append(plot(f"scores-{stem}", caption, *scores, detector=name))
    if weights is not None and weights.history:
        caption = "Task weights λ over pretraining; the legend gives where each ended."
        drawn.append(plot("weights", caption, plots.plot_weights, weights.history, weights.names))
    points, groups, method = _projection(main, seed)
    title = f"{method} of the features of {next(iter(scored))}"
    caption = f"{title}, {len(points)} faces. Distances between far groups mean nothing in such a picture."
    drawn.append(plot("features", caption, plots.plot_projection, points, groups, method, title))
    return drawn


def _projection(sides: Sides, seed: int) -> tuple[np.ndarray, list[str], str]:
    """A fair sample of both sides, projected together: (n, 2), the side of each, the method."""
    features = np.concatenate([sides.real.features, sides.generated.features])
    groups = [plots.REAL] * len(sides.real) + sides.generated.sources
    kept = np.sort(np.random.default_rng(seed).permutation(len(features))[:PROJECTED])
    points, method = plots.project(features[kept], seed)
    order = {name: i for i, name in enumerate([plots.REAL, *sides.rows])}
    by_side = sorted(range(len(kept)), key=lambda i: order[groups[kept[i]]])
    return points[by_side], [groups[kept[i]] for i in by_side], method


def worst_fakes(folder: Path, main: Scored, sides: Sides) -> list[report.Mistake]:
    """The generated faces that score most like photographs, from shard folder ``folder``."""
    scores = main.detector.score(sides.generated.features)
    return _mistakes(folder, main.detector, sides.generated, scores, np.argsort(-scores, kind="stable")[:WORST])


def worst_photographs(folder: Path, main: Scored, sides: Sides) -> list[report.Mistake]:
    """The photographs that score least like photographs, from shard folder ``folder``."""
    return _mistakes(folder, main.detector, sides.real, main.real, np.argsort(main.real, kind="stable")[:WORST])


def _mistakes(
    folder: Path, detector: Detector, faces: FeatureSet, scores: np.ndarray, rows: np.ndarray
) -> list[report.Mistake]:
    crops = _crops(folder, {faces.ids[i] for i in rows})
    p_values, flags = detector.p_values(scores[rows]), detector.is_generated(scores[rows])
    return [
        report.Mistake(
            picture=thumbnail(crops[faces.ids[i]], THUMBNAIL),
            source=faces.sources[i],
            path=faces.paths[i],
            score=float(scores[i]),
            p_value=float(p),
            flagged=bool(flag),
        )
        for i, p, flag in zip(rows, p_values, flags, strict=True)
    ]


def _crops(folder: Path, ids: set[str]) -> dict[str, bytes]:
    """Stored images of some faces; reads pictures only of the row groups that hold one."""
    found: dict[str, bytes] = {}
    for shard in read_manifest(folder).split(SPLIT):
        with pq.ParquetFile(folder / shard.name) as file:
            for group in range(file.num_row_groups):
                if ids.isdisjoint(file.read_row_group(group, columns=["id"])["id"].to_pylist()):
                    continue
                rows = file.read_row_group(group, columns=["id", "image"]).to_pylist()
                found |= {row["id"]: row["image"] for row in rows if row["id"] in ids}
    return found
