import io

import matplotlib
import numpy as np
import pytest
from PIL import Image

from blades_dist.evaluate import plots, tables
from blades_dist.figures import DARK, LIGHT, png


def _size(figure):
    return Image.open(io.BytesIO(png(figure))).size


@pytest.fixture(scope="module")
def scores():
    rng = np.random.default_rng(0)
    real, generated = rng.normal(0, 1, 60), {"a": rng.normal(-1, 1, 40), "far": np.full(30, -1e6), "none": np.zeros(0)}
    return real, generated, tables.assess(real, generated, real < -1, {n: s < -1 for n, s in generated.items()}, 100)


def test_every_figure_is_drawn_without_a_trace_in_matplotlib(scores):
    before = dict(matplotlib.rcParams)
    real, generated, assessment = scores
    points = np.random.default_rng(1).normal(size=(50, 2))
    for theme in (LIGHT, DARK):
        figures = [
            plots.plot_roc(real, generated, assessment, "ROC", theme=theme),
            plots.plot_scores(real, generated, -1.0, "Scores", "nats", theme=theme),
            plots.plot_scores(real, {}, -np.inf, "Scores", "nats", theme=theme),
            plots.plot_weights([(0, [1.0, 1.0]), (10, [0.9, 1.2])], ["iso", "make"], theme=theme),
            plots.plot_weights([], ["iso"], theme=theme),
            plots.plot_projection(points, [plots.REAL] * 30 + ["a"] * 20, "t-SNE", "Features", theme=theme),
        ]
        assert all(min(_size(figure)) > 300 for figure in figures)
    assert dict(matplotlib.rcParams) == before


def test_roc_legend_tells_auc_with_its_interval(scores):
    real, generated, assessment = scores
    labels = [text.get_text() for text in plots.plot_roc(real, generated, assessment, "ROC").axes[0].get_legend().texts]
    assert f"a: AUC {tables.show(assessment.ranked['AUC'].estimate(0))}" in labels
    assert not [label for label in labels if label.startswith("none")]


def test_far_scores_stay_within_the_shown_range(scores):
    real, generated, _ = scores
    axes = plots.plot_scores(real, generated, -1.0, "Scores", "nats").axes[0]
    low, high = axes.get_xlim()
    assert low > -50 and high < 50


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
    points, found = plots.project(np.random.default_rng(0).normal(size=(n, 16)).astype(np.float32))
    assert points.shape == (n, 2) and found == method
