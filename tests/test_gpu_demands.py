"""Who asks for a GPU is told at once where there is none: Ray would wait for ever and say nothing."""

from pathlib import Path
from types import SimpleNamespace

import pytest
import ray

from blades_dist.config import ExtractConfig, PretrainConfig
from blades_dist.config.serve import ServiceConfig
from blades_dist.detect import extract
from blades_dist.raylocal import cards
from blades_dist.serving import app
from blades_dist.settings import ConfigError
from blades_dist.training import launch
from blades_dist.tuning import features


def _extract(gpu):
    unit = extract._Unit("encoder", "shard", 0, 1, "", 1, "target")
    extract._compute([unit], ExtractConfig(gpu=gpu), print)


def _sweep(gpu, folder):
    nothing = SimpleNamespace(model_dump=dict)
    config = SimpleNamespace(
        pretrain=SimpleNamespace(data=SimpleNamespace(shards="shards"), loss=SimpleNamespace(flash=False)),
        objective=SimpleNamespace(limit=1, reference=nothing),
        fit=SimpleNamespace(extract=ExtractConfig(gpu=gpu)),
        seed=0,
        folder=folder,
    )
    features.manipulated(Path("encoder"), "val", config)


def _serve(gpu, **values):
    app._check_resources(ServiceConfig(detector=Path("bundle"), gpu=gpu, **values))


def _train(**train):
    launch.check_cluster(PretrainConfig.model_validate({"data": {"shards": "s"}, "train": {"gpu": True} | train}))


DEMANDS = {
    "extract": (lambda _: _extract(True), r"extract\.gpu: .* needs 1 GPU, the cluster has 0; .* extract\.gpu=false"),
    "share": (lambda _: _extract(0.25), r"extract\.gpu: .* needs 1 GPU, the cluster has 0"),
    "sweep": (lambda folder: _sweep(True, folder), r"fit\.extract\.gpu: .* needs 1 GPU, the cluster has 0"),
    "service": (lambda _: _serve(True), r"gpu: 1 replicas of 1 each need 1 GPU, the cluster has 0; .* gpu=false"),
    "replicas": (lambda _: _serve(0.5, replicas=3), r"gpu: 3 replicas of 0\.5 each need 2 GPU, the cluster has 0"),
    "training": (lambda _: _train(), r"train\.gpu: 1 workers need 1 GPU, the cluster has 0; .* train\.gpu=false"),
    "worker's share": (lambda _: _train(gpu_per_worker=0.5), r"train\.gpu: 1 workers need 0\.5 GPU"),
}


@pytest.mark.parametrize("name", DEMANDS)
def test_a_demand_where_there_is_no_gpu_is_refused(name, monkeypatch, tmp_path):
    monkeypatch.setattr(ray, "cluster_resources", lambda: {"CPU": 64.0})
    monkeypatch.setattr(features, "encoder_digest", lambda _: "0" * 64)
    demand, message = DEMANDS[name]
    with pytest.raises(ConfigError, match=message):
        demand(tmp_path)


@pytest.mark.parametrize(
    ("count", "share", "expected"), [(3, 0.6, 3), (3, 0.5, 2), (4, 0.25, 1), (5, 0.25, 2), (2, 1.0, 2), (7, 0.0, 0)]
)
def test_an_actor_lies_on_one_card(count, share, expected):
    assert cards(count, share) == expected


@pytest.mark.parametrize(("given", "share"), [(False, 0.0), (True, 1.0), (0.25, 0.25), (1, 1.0)])
def test_a_share_of_a_gpu_may_be_given_as_yes_or_no(given, share):
    assert ExtractConfig(gpu=given).gpu == share == ServiceConfig(detector=Path("bundle"), gpu=given).gpu


@pytest.mark.parametrize("given", [-0.5, 1.5, 2])
def test_no_actor_takes_more_than_a_card(given):
    with pytest.raises(ValueError, match="gpu"):
        ExtractConfig(gpu=given)


@pytest.mark.parametrize(("share", "gpus", "actors"), [(1.0, 2, 2), (0.25, 2, 8), (0.3, 1, 3)])
def test_as_many_actors_extract_as_the_cards_hold(share, gpus, actors, monkeypatch):
    monkeypatch.setattr(ray, "cluster_resources", lambda: {"CPU": 4.0, "GPU": float(gpus)})
    assert extract._actors(ExtractConfig(gpu=share)) == actors
    assert extract._actors(ExtractConfig()) == 4
