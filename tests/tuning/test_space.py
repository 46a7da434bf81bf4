"""Ranges and choices: what is allowed, and that nothing leaves them."""

import random
from pathlib import Path

import optuna
import pytest

from blades_dist.settings import ConfigError, load
from blades_dist.tuning.config import SweepConfig, applied, defaults
from blades_dist.tuning.space import Dimension, applies, suggest
from tests.tuning.small import config


@pytest.mark.parametrize(
    "dimension",
    [
        Dimension(low=1e-5, high=1e-2, log=True),
        Dimension(low=1, high=32, log=True),
        Dimension(low=-1.0, high=2.0),
        Dimension(choices=[None, 16, "x", True]),
    ],
)
def test_what_is_drawn_perturbed_or_asked_for_lies_inside(dimension: Dimension) -> None:
    own = random.Random(0)
    study = optuna.create_study()
    for _ in range(50):
        value = dimension.draw(own)
        assert dimension.contains(value) and dimension.contains(dimension.perturb(value, own))
        trial = study.ask()
        assert dimension.contains(dimension.ask(trial, "key"))
        study.tell(trial, 0.0)
    assert not dimension.contains(1e9) and not dimension.contains("other")


def test_a_perturbed_number_moves_by_a_fifth_and_stops_at_the_ends() -> None:
    own = random.Random(1)
    assert {Dimension(low=0.1, high=10.0).perturb(1.0, own) for _ in range(20)} == {0.8, 1.25}
    assert {Dimension(low=0.9, high=1.1).perturb(1.0, own) for _ in range(20)} == {0.9, 1.1}


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"low": 1}, "give low and high"),
        ({"low": 2, "high": 1}, "low < high is needed"),
        ({"low": 0, "high": 1, "log": True}, "low > 0 on a logarithmic scale"),
        ({"choices": [1]}, "at least two different choices"),
        ({"choices": [1, 2], "log": True}, "choices have no scale"),
    ],
)
def test_dimensions_that_make_no_sense_are_refused(values: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Dimension.model_validate(values)


def test_a_detector_is_asked_only_for_what_its_kind_has(tmp_path: Path) -> None:
    space = config(tmp_path).detectors.space
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    seen = set()
    for _ in range(20):
        trial = study.ask()
        values = suggest(trial, space, "oc")
        seen.add(values["kind"])
        assert all(applies(key, str(values["kind"])) for key in values)
        assert ("oc.n_components" in values) == (values["kind"] == "oc")
        study.tell(trial, 0.0)
    assert seen == {"oc", "knn", "mahalanobis"}


def test_values_reach_their_configuration(tmp_path: Path) -> None:
    base = config(tmp_path).pretrain
    found = applied(base, {"train.lr": 0.5, "bilevel.initial.face_coarse": 3.0, "bilevel.route": "alternating"})
    assert (found.train.lr, found.bilevel.route) == (0.5, "alternating")
    assert found.bilevel.initial["face_coarse"] == 3.0 and found.bilevel.initial["iso"] == 1.0
    assert defaults(base, config(tmp_path).encoders.space) == {"train.lr": 1e-5, "bilevel.initial.face_coarse": 1.0}
    with pytest.raises(ConfigError, match=r"unknown key 'train\.lrr'"):
        applied(base, {"train.lrr": 1})


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"encoders": {"space": {"train.lrr": [1, 2]}}}, r"encoders.space: train.lrr: unknown key"),
        ({"encoders": {"space": {"train.lr": {"low": -1.0, "high": 1.0}}}}, r"train.lr: .*greater than 0"),
        ({"detectors": {"space": {"oc.covariance_type": ["full", "round"]}}}, r"oc.covariance_type: "),
        ({"encoders": {"scheduler": "population"}}, "lambda; leave it out"),
        ({"encoders": {"scheduler": "population", "space": {"train.lr": [0.1, 0.2]}}}, "set constant"),
        ({"encoders": {"scheduler": "population", "seeds": 2}}, "exchange weights"),
        ({"objective": {"kind": "supervised"}}, "needs a shard folder of AI faces"),
        ({"objective": {"kind": "supervised", "metric": "tpr"}, "generated": "fakes"}, "largest fpr"),
        ({"objective": {"weights": {"proxy": 0, "separation": 0, "likelihood": 0, "operating": 0}}}, "every weight"),
        ({"fit": {"kind": "bc", "generated": "fakes"}}, "no AI face"),
    ],
)
def test_a_sweep_that_cannot_work_is_refused_with_the_key(tmp_path: Path, values: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        config(tmp_path, **values)


def test_the_presets_can_be_overridden() -> None:
    preset = Path(__file__).parents[2] / "jobs" / "configs" / "demo.yaml"
    found = load(SweepConfig, "sweep", preset, ["encoders.seeds=2", "pretrain.train.epochs=1"])
    assert found.encoders.seeds == 2 and found.pretrain.train.epochs == 1 and found.pretrain.train.batch_size == 48
