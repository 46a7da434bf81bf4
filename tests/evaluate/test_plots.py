import io
import sys

import matplotlib
import numpy as np
import pytest
from PIL import Image

from blades_dist.evaluate import comparison_plots, plots, projection, table_formats
from blades_dist.evaluate.assess import assess
from blades_dist.evaluate.predictions import Pair, Predictions
from blades_dist.report.figures import DARK, LIGHT, png
from tests.evaluate.synthetic import DETECTORS, GENERATORS, make_assessments


def _size(figure):
    return Image.open(io.BytesIO(png(figure))).size


def _predictions(scores):
    return Predictions(scores, scores < -1, np.zeros(len(scores), bool), None, None)


@pytest.fixture(scope="module")
def one():
    rng = np.random.default_rng(0)
    real = _predictions(rng.normal(0, 1, 60))
    sets = {"a": rng.normal(-1, 1, 40), "far": np.full(30, -1e6), "none": np.zeros(0)}
    return assess({name: Pair(real, _predictions(scores)) for name, scores in sets.items()}, resamples=100)


@pytest.fixture(scope="module")
def many():
    return make_assessments(resamples=100)


def test_every_figure_is_drawn_without_a_trace_in_matplotlib(one, many):
    before = dict(matplotlib.rcParams)
    points = np.random.default_rng(1).normal(size=(50, 2))
    nothing = assess({"none": Pair(_predictions(np.zeros(0)), _predictions(np.zeros(0)))}, resamples=100)
    for theme in (LIGHT, DARK):
        figures = [
            plots.plot_roc(one, "ROC", theme=theme),
            plots.plot_scores(one.pairs, -1.0, "Scores", "nats", theme=theme),
            plots.plot_scores(nothing.pairs, None, "Scores", "nats", theme=theme),
            plots.plot_scores(one.pairs, -np.inf, "Scores", "nats", theme=theme),
            plots.plot_weights([(0, [1.0, 1.0]), (10, [0.9, 1.2])], ["iso", "make"], theme=theme),
            plots.plot_weights([], ["iso"], theme=theme),
            projection.plot_projection(points, [plots.REAL] * 30 + ["a"] * 20, "t-SNE", "Features", theme=theme),
            comparison_plots.plot_all_roc(many, theme=theme),
            comparison_plots.plot_all_roc({"empty": nothing}, theme=theme),
            comparison_plots.plot_reliability(many, theme=theme),
            comparison_plots.plot_p_values(many, theme=theme),
        ]
        assert all(min(_size(figure)) > 100 for figure in figures)
    assert dict(matplotlib.rcParams) == before


def test_roc_legend_tells_auc_with_its_interval(one):
    labels = [text.get_text() for text in plots.plot_roc(one, "ROC").axes[0].get_legend().texts]
    assert f"a: AUC {table_formats.show(one.ranked['AUC'].estimate(0))}" in labels
    assert not [label for label in labels if label.startswith("none")]


def test_far_scores_stay_within_the_shown_range(one):
    axes = plots.plot_scores(one.pairs, -1.0, "Scores", "nats").axes[0]
    low, high = axes.get_xlim()
    assert low > -50 and high < 50


def test_all_detectors_are_in_every_panel(many):
    figure = comparison_plots.plot_all_roc(many)
    titles = [axes.get_title() for axes in figure.axes]
    assert titles == [*(f"{name} (n = {n})" for name, n in GENERATORS.items()), "mean over generators"]
    labels = [text.get_text() for text in figure.legends[0].texts]
    assert labels == [f"{name}: {table_formats.show(a.ranked['AUC'].mean())}" for name, a in many.items()]
    for i, found in enumerate(many.values()):  # the area under the mean curve is the mean of the areas
        x, y = figure.axes[-1].lines[i].get_data()
        assert np.trapezoid(y, x) / 1e4 == pytest.approx(found.ranked["AUC"].mean().value, abs=0.01)


def test_panels_are_of_the_detectors_that_have_what_they_show(many):
    titles = [axes.get_title().split("\n")[0] for axes in comparison_plots.plot_reliability(many).axes if axes.axison]
    assert titles == [name for name, what in DETECTORS.items() if what[2]]
    titles = [axes.get_title().split("\n")[0] for axes in comparison_plots.plot_p_values(many).axes if axes.axison]
    assert titles == [name for name, what in DETECTORS.items() if what[1]]


def test_titles_and_labels_do_not_overlap(many):
    for figure in (comparison_plots.plot_all_roc(many), comparison_plots.plot_p_values(many)):
        png(figure)  # lays it out
        boxes = [
            text.get_window_extent() for axes in figure.axes if axes.axison for text in (axes.title, axes.xaxis.label)
        ]
        boxes += [legend.get_window_extent() for legend in figure.legends]
        assert not [1 for i, box in enumerate(boxes) for other in boxes[:i] if box.overlaps(other)]


def test_eleven_weights_look_different():
    names = [f"task {i}" for i in range(11)]
    axes = plots.plot_weights([(s, list(range(11))) for s in range(3)], names).axes[0]
    looks = {(line.get_color(), line.get_linestyle(), line.get_marker()) for line in axes.lines}
    assert len(looks) == 11


def test_a_weight_too_few_is_refused():
    with pytest.raises(ValueError, match="2 weights"):
        plots.plot_weights([(0, [1.0])], ["iso", "make"])


@pytest.mark.parametrize(("n", "method"), [(60, "t-SNE"), (5, "principal component"), (1, "principal component")])
def test_projection_of_any_size(n, method):
    points, found = projection.flatten(np.random.default_rng(0).normal(size=(n, 16)).astype(np.float32))
    assert points.shape == (n, 2) and found == method


def test_projection_samples_both_sides_fairly():
    rng = np.random.default_rng(0)
    found = projection.project(rng.normal(0, 1, (900, 4)), {"a": rng.normal(9, 1, (300, 4))})
    assert len(found.points) == len(found.groups) == projection.SHOWN
    assert 0.7 < np.mean([group == plots.REAL for group in found.groups]) < 0.8
    again = projection.project(np.zeros((0, 4)), {"a": rng.normal(9, 1, (3, 4))})
    assert again.groups == ["a"] * 3


def test_umap_when_installed():
    pytest.importorskip("umap")
    points, name = projection.flatten(np.random.default_rng(0).normal(size=(60, 16)), "umap")
    assert points.shape == (60, 2) and name == "UMAP"


def test_what_cannot_be_projected_is_said(monkeypatch):
    with pytest.raises(ValueError, match="choose tsne or umap"):
        projection.check_method("pca")
    monkeypatch.setitem(sys.modules, "umap", None)  # as if it were not installed
    with pytest.raises(ValueError, match="needs the package umap-learn"):
        projection.check_method("umap")
