"""The pictures of a report: plots of every detector, and the faces that one places worst."""

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import pyarrow.parquet as pq

from blades_dist.data.records import read_manifest
from blades_dist.data.thumbnails import thumbnail
from blades_dist.evaluate import comparison_plots, plots, projection, report
from blades_dist.evaluate.assess import Assessment
from blades_dist.evaluate.predictions import Predictions
from blades_dist.evaluate.pretraining_run import WeightHistory
from blades_dist.report.figures import Plot, plot

WORST = 8  # mistakes shown of each side
THUMBNAIL = 160  # pixels a side at most


@dataclass(frozen=True)
class Subject:
    """A detector to draw: ``threshold`` of its scores (None: none that holds for all), ``unit`` of them in words."""

    assessment: Assessment
    threshold: float | None
    unit: str


def draw_plots(
    subjects: Mapping[str, Subject],
    projected: projection.Projection | None = None,
    weights: WeightHistory | None = None,
    confidence: float = 0.95,
) -> list[Plot]:
    """Comparisons of all detectors, the main (first) one's features, the weights, then ROC and scores of each."""
    assessments = {name: subject.assessment for name, subject in subjects.items()}
    drawn = _comparisons(assessments, confidence)
    if projected is not None:
        title = f"{projected.method} of the features of {next(iter(subjects))}"
        caption = (
            f"{title}, {len(projected.points)} faces. Distances between far groups mean nothing in such a picture."
        )
        shown = (projected.points, projected.groups, projected.method, title)
        drawn.append(plot("features", caption, projection.plot_projection, *shown))
    if weights is not None and weights.history:
        caption = "Task weights λ over pretraining; the legend gives where each ended."
        drawn.append(plot("weights", caption, plots.plot_weights, weights.history, weights.names))
    for i, (name, subject) in enumerate(subjects.items()):
        drawn += _own(f"{i + 1}-{re.sub(r'[^A-Za-z0-9_-]+', '_', name)}", name, subject, confidence)
    return drawn


def worst(
    side: Literal["photographs", "generated"],
    predictions: Predictions,
    ids: Sequence[str],
    sources: Sequence[str],
    paths: Sequence[str],
    load: Callable[[set[str]], Mapping[str, bytes]],
) -> list[report.Mistake]:
    """The photographs that score least like photographs, or the generated faces that score most like them.

    ``ids``, ``sources``, ``paths`` belong to ``predictions`` one by one; ``load`` gives stored images by id.

    Raises:
        ValueError: not as many ids, sources and paths as predictions, or a stored image that cannot be decoded.
    """
    if not len(predictions) == len(ids) == len(sources) == len(paths):
        raise ValueError(
            f"{len(predictions)} predictions need as many ids, sources and paths, "
            f"got {len(ids)}, {len(sources)}, {len(paths)}"
        )
    sign = 1 if side == "photographs" else -1
    rows = np.argsort(sign * predictions.scores, kind="stable")[:WORST]
    stored = load({ids[i] for i in rows})
    return [
        report.Mistake(
            picture=thumbnail(stored[ids[i]], THUMBNAIL),
            source=sources[i],
            path=paths[i],
            score=float(predictions.scores[i]),
            p_value=None if predictions.p_values is None else float(predictions.p_values[i]),
            flagged=bool(predictions.called[i]),
            unsure=bool(predictions.unsure[i]),
        )
        for i in rows
    ]


def stored_images(folder: Path, split: str, ids: set[str]) -> dict[str, bytes]:
    """Stored images of some faces of a shard set; reads pictures only of the row groups that hold one."""
    found: dict[str, bytes] = {}
    for shard in read_manifest(folder).split(split):
        with pq.ParquetFile(folder / shard.name) as file:
            for group in range(file.num_row_groups):
                if ids.isdisjoint(file.read_row_group(group, columns=["id"])["id"].to_pylist()):
                    continue
                rows = file.read_row_group(group, columns=["id", "image"]).to_pylist()
                found |= {row["id"]: row["image"] for row in rows if row["id"] in ids}
    return found


def _comparisons(assessments: Mapping[str, Assessment], confidence: float) -> list[Plot]:
    drawn = []
    if len(assessments) > 1:
        caption = "ROC of all detectors, generator by generator, and averaged over generators at equal FPR."
        drawn.append(plot("roc-all", caption, comparison_plots.plot_all_roc, assessments, confidence))
    if any(found.reliability for found in assessments.values()):
        caption = (
            "Reliability: share of AI-generated images against the probability given to them, 15 bins with bootstrap "
            "intervals; on the dotted line a probability means what it says. Sides count one half each."
        )
        drawn.append(plot("reliability", caption, comparison_plots.plot_reliability, assessments))
    if any(found.p_error for found in assessments.values()):
        caption = (
            "False-positive rate measured on the test photographs against the nominal one, both logarithmic, with "
            "Wilson's band a rate; dots are the four operating points. On the dotted line p-values keep their promise, "
            "above it too many photographs are flagged. Rates below the axis are drawn at its edge."
        )
        drawn.append(plot("p-values", caption, comparison_plots.plot_p_values, assessments, confidence))
    return drawn


def _own(stem: str, name: str, subject: Subject, confidence: float) -> Iterable[Plot]:
    title = f"ROC of {name}"
    caption = f"{title}: each generator against all photographs, with AUC and its interval."
    yield plot(f"roc-{stem}", caption, plots.plot_roc, subject.assessment, title, confidence, detector=name)
    title = f"Scores of {name}"
    cut = "" if subject.threshold is None else "; what scores left of the dashed threshold is flagged"
    caption = (
        f"{title}: {subject.unit}, right is more like a photograph{cut}. "
        "The outermost bins also hold what lies beyond the range shown."
    )
    scores = (subject.assessment.pairs, subject.threshold, title, subject.unit)
    yield plot(f"scores-{stem}", caption, plots.plot_scores, *scores, detector=name)
