"""A kind of head is added by its own file and one registration: here one that the package has never heard of."""

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from blades_dist.config import FitConfig, MixtureConfig
from blades_dist.config.heads import SECTIONS
from blades_dist.detect.card import model_card
from blades_dist.detect.detector import load_detector, save_detector
from blades_dist.detect.heads import HEADS, register
from blades_dist.detect.heads.base import Head
from blades_dist.detect.inspect import inspect_files, lines
from blades_dist.detect.onnx import head_graph
from blades_dist.detect.schema import ImageReport
from blades_dist.serving.model import describe
from blades_dist.settings import ConfigError, load
from blades_dist.testing.made_up import made_up_head
from blades_dist.testing.toy_detector import toy_detector, unit_rows, write_photographs
from blades_dist.tuning.config import BaseDetector, DetectorSearch, Objective, SweepConfig
from blades_dist.tuning.objective import TrialFeatures, terms
from blades_dist.tuning.space import applies, distributions


@pytest.fixture
def head() -> Iterator[type[Head]]:
    with made_up_head() as found:
        yield found


FIT = {"encoder": "e", "shards": "s", "output": "o"}


def test_the_two_tables_of_kinds_agree() -> None:
    assert {kind: head.config for kind, head in HEADS.items() if head.config is not None} == SECTIONS
    assert all(kind == head.kind for kind, head in HEADS.items())
    with pytest.raises(ValueError, match="'oc' is registered already, by MixtureHead"):
        register(HEADS["oc"])


def test_a_new_kind_is_fitted_saved_loaded_and_judges(head: type[Head], tmp_path: Path) -> None:
    detector = toy_detector(head.kind)
    info = save_detector(tmp_path / "bundle", detector)
    assert info.kind == head.kind and info.training.figures["power"] == 2 and info.training.notes
    assert info.provenance.config[head.kind] == {"power": 2.0}
    loaded, rows = load_detector(tmp_path / "bundle"), unit_rows(40, 16)
    assert type(loaded.head) is head and np.array_equal(loaded.score(rows), detector.score(rows))
    assert loaded.threshold(0.05) == detector.threshold(0.05) and loaded.probability(np.zeros(3)) is None
    assert loaded.info.measured(0.05).n == 121 and head.sentence in model_card(loaded.info)
    write_photographs(tmp_path / "photographs", range(2))
    files = sorted((tmp_path / "photographs").glob("*.jpg"))
    for file, answer in inspect_files(loaded, files, 10**7, 10**7, fpr=0.05):
        assert isinstance(answer, ImageReport) and answer.detector.kind == head.kind
        assert answer.faces[0].re_encoded.keys() == {"jpeg75"} and lines(file.name, answer)


def test_a_bundle_of_a_kind_that_is_not_registered_is_refused(tmp_path: Path) -> None:
    with made_up_head() as head:
        save_detector(tmp_path / "bundle", toy_detector(head.kind))
    with pytest.raises(ValueError, match="head kind 'centroid'; known: oc, mahalanobis, knn, bc, linear"):
        load_detector(tmp_path / "bundle")


def test_a_new_kind_has_its_graph(head: type[Head]) -> None:
    own, rows = toy_detector(head.kind).head, unit_rows(40, 16, seed=3)
    np.testing.assert_allclose(head_graph(own)(torch.tensor(rows)).numpy(), own.score(rows), rtol=1e-11)


@pytest.mark.parametrize("kind", ["oc", "mahalanobis", "knn", "bc", "centroid"])
def test_the_service_tells_the_unit_that_the_head_states(head: type[Head], kind: str) -> None:
    assert describe("x", True, toy_detector(kind)).score_unit == HEADS[kind].unit
    assert HEADS["mahalanobis"].unit == HEADS["oc"].unit == "log-likelihood (nats)"


def test_a_new_kind_has_a_section(head: type[Head], tmp_path: Path) -> None:
    file = tmp_path / "a.yaml"
    file.write_text(json.dumps({"fit": {**FIT, "kind": head.kind, head.kind: {"power": 3}}}))
    config = load(FitConfig, "fit", file)
    assert config.section() == head.config(power=3) and load(FitConfig, "fit", file, ["centroid.power=1"]) != config
    with pytest.raises(ConfigError, match=r"unknown key 'centroid\.pow'; allowed here: power"):
        load(FitConfig, "fit", file, ["centroid.pow=1"])
    with pytest.raises(ConfigError, match=r"centroid\.power: .*greater than 0"):
        load(FitConfig, "fit", file, ["centroid.power=0"])
    with pytest.raises(ConfigError, match="not used by kind: centroid"):
        load(FitConfig, "fit", file, ["generated=fakes"])


def test_a_new_kind_is_searched_by_sweeps(head: type[Head], tmp_path: Path) -> None:
    space = DetectorSearch().space
    assert head.kind in space["kind"].choices and "bc" not in space["kind"].choices
    assert "centroid.power" in distributions(space)
    assert applies("centroid.power", head.kind) and not applies("centroid.power", "oc")
    pretrain = {"data": {"shards": "s", "image_size": 64}, "train": {"batch_size": 8, "max_steps": 6}}
    sweep = SweepConfig.model_validate({"pretrain": pretrain, "fit": {"kind": head.kind}, "storage": tmp_path})
    rows = [unit_rows(60, 8, seed) for seed in range(3)]
    found = terms(sweep.fit, TrialFeatures(*rows, proxy=0.5), 0, Objective())
    assert found["likelihood"] == 0.5 and 0 <= found["separation"] <= 1


def test_without_it_nothing_is_known_of_it() -> None:
    with pytest.raises(ConfigError, match="unknown key 'centroid'"):
        load(FitConfig, "fit", None, [*(f"{key}={value}" for key, value in FIT.items()), "centroid.power=1"])
    with pytest.raises(ValueError, match="no kind of head that can be fitted; known: oc, mahalanobis, knn, bc"):
        FitConfig(**FIT, kind="centroid")
    assert "centroid" not in DetectorSearch().space["kind"].choices


def test_a_configuration_is_the_same_after_it_was_stored() -> None:
    config = BaseDetector(kind="knn", oc=MixtureConfig(n_components=[1, 2]), knn={"k": 3})
    for mode in ("python", "json"):
        again = BaseDetector.model_validate(config.model_dump(mode=mode))
        assert again == config and again.section("oc").sizes == [1, 2] and again.section().k == 3
