"""Predictions of four detectors on five generators, from known distributions; and a whole report made of them."""

import cv2
import numpy as np
import pyarrow as pa

from blades_dist.evaluate import parity, pictures, projection, report
from blades_dist.evaluate.assess import assess
from blades_dist.evaluate.predictions import Pair, Predictions, join
from blades_dist.evaluate.pretraining_run import CoarseAuc, Pretext, TaskAccuracy, WeightHistory
from blades_dist.evaluate.tables import build_tables

GENERATORS = {"stylegan2": 40, "stylegan3 <t>": 35, "sd_1.5": 50, "midjourney & co": 30, "flux": 45}
PHOTOGRAPHS = 120
# Name: (separation in standard deviations, has p-values, has a probability, a head for each generator)
DETECTORS = {
    "oc": (1.5, True, False, False),
    "bc <leave one out>": (2.0, True, True, True),
    "CNNDetection": (2.5, False, True, False),
    "user's scorer": (0.8, False, False, False),
}


def make_pairs(seed, separation, with_p, with_probability, own_heads):
    """Pairs by generator; scores of photographs are N(0, 1), of each generator shifted down by more or less."""
    rng = np.random.default_rng(seed)
    base = rng.normal(0, 1, PHOTOGRAPHS)
    calibration = np.sort(rng.normal(0, 1, 999))

    def predictions(scores):
        p_values = (1 + np.searchsorted(calibration, scores, side="right")) / 1000
        flagged = p_values <= 0.05
        return Predictions(
            scores=scores,
            flagged=flagged,
            unsure=(p_values <= 0.1) & ~flagged if with_p else np.zeros(len(scores), bool),
            p_values=p_values if with_p else None,
            probability=1 / (1 + np.exp(scores + separation / 2)) if with_probability else None,
        )

    shared, pairs = predictions(base), {}
    for i, (name, n) in enumerate(GENERATORS.items()):
        real = predictions(base + rng.normal(0, 0.3, len(base))) if own_heads else shared
        pairs[name] = Pair(real, predictions(rng.normal(-separation * (0.5 + i / 4), 1, n)))
    return pairs


def make_assessments(resamples=200):
    return {name: assess(make_pairs(i, *what), resamples) for i, (name, what) in enumerate(DETECTORS.items())}


def containers(n, seed, codec="jpeg"):
    rng = np.random.default_rng(seed)
    columns = {"codec": [codec] * n, "width": rng.integers(90, 300, n), "height": rng.integers(90, 300, n)}
    return pa.table(columns | {"jpeg_quality": rng.integers(80, 96, n).astype(float)})


def images(ids):
    """A stored picture for each id."""
    rng = np.random.default_rng(0)
    return {one: cv2.imencode(".png", rng.integers(0, 256, (70, 60, 3), dtype=np.uint8))[1].tobytes() for one in ids}


def make_evaluation(resamples=200, method="tsne"):
    """A report on synthetic predictions, made in the order in which the evaluation job does it."""
    assessments = make_assessments(resamples)
    rng = np.random.default_rng(1)
    names = [f"task {i}" for i in range(11)]
    weights = WeightHistory(names=names, history=[(s, list(1 + 0.01 * s * np.arange(11))) for s in range(0, 60, 5)])
    task = TaskAccuracy(accuracy=0.6, low=0.55, high=0.65, majority=0.4, n=100)
    main = next(iter(assessments))
    features = {name: rng.normal(0.5 * i, 1, (n, 16)) for i, (name, n) in enumerate(GENERATORS.items())}
    projected = projection.project(rng.normal(0, 1, (PHOTOGRAPHS, 16)), features, method)
    units = {name: "log-likelihood in nats" if with_p else "no unit" for name, (_, with_p, *_) in DETECTORS.items()}
    subjects = {
        name: pictures.Subject(found, None if found.own_heads else -1.64, units[name])
        for name, found in assessments.items()
    }
    sides = {"real": next(iter(assessments[main].pairs.values())).real}
    sides["fake"] = join([pair.generated for pair in assessments[main].pairs.values()])
    ids = {side: [f"{side}-{i}" for i in range(len(predictions))] for side, predictions in sides.items()}
    sources = {"real": ["camera"] * PHOTOGRAPHS, "fake": [name for name, n in GENERATORS.items() for _ in range(n)]}
    paths = {side: [f"{side}/<{i}>.png" for i in range(len(own))] for side, own in ids.items()}
    real = containers(PHOTOGRAPHS, 0)
    png = {name: containers(n, 1 + i, "png") for i, (name, n) in enumerate(GENERATORS.items())}
    alike = {name: containers(n, 1 + i) for i, (name, n) in enumerate(GENERATORS.items())}
    return report.Evaluation(
        created="2026-01-01T00:00:00+00:00",
        simulated="random numbers of a test",
        photographs={"camera": PHOTOGRAPHS},
        generated=GENERATORS,
        caveats=["A remark with <angle brackets>."],
        audit=parity.audit(real, alike, 100),
        audit_before=parity.audit(real, png, 100),
        assessments=assessments,
        facts={name: _facts(name, subjects[name].threshold) for name in assessments},
        tables=build_tables(assessments),
        confidence=0.95,
        config={"detectors": {name: f"runs/{i}" for i, name in enumerate(assessments)}, "rate": float("inf")},
        versions={"blades_dist": "0", "python": "3"},
        weights=weights,
        pretext=Pretext(coarse_auc=CoarseAuc(value=0.9, low=0.85, high=0.95, n=80), tasks={"iso": task}),
        plots=pictures.draw_plots(subjects, projected, weights),
        passed_fakes=pictures.worst("generated", sides["fake"], ids["fake"], sources["fake"], paths["fake"], images),
        doubted_photographs=pictures.worst(
            "photographs", sides["real"], ids["real"], sources["real"], paths["real"], images
        ),
    )


def _facts(name, threshold):
    left_out = DETECTORS[name][3]
    return report.Facts(
        kind="binary (bc)" if left_out else "one-class (oc)",
        threshold=threshold,
        nominal_fpr=0.05 if DETECTORS[name][1] else None,
        calibrated_on=999 if DETECTORS[name][1] else None,
        bundle=f"runs/{name} (id 0123456789abcdef)",
        encoder="fedcba9876543210",
        not_held_out=("flux",) if name == "CNNDetection" else (),
        provenance={"note": "<unescaped> & raw"},
        note="Each generator was judged by a head that had not seen it." if left_out else "",
        training={"BIC": "-1234.5"} if name == "oc" else {},
    )
