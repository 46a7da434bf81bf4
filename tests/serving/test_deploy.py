"""What is deployed: the file for ``serve deploy``, the deployments' bounds and versions, and the job's one line."""

import os
import subprocess
import sys
from pathlib import Path

import yaml
from ray.serve.schema import ServeDeploySchema

from blades_dist.config.serve import ServiceConfig
from blades_dist.serving.app import application, build
from blades_dist.testing.toy_detector import write_bundle

ROOT = Path(__file__).parents[2]


def deployments(app):
    """All deployments of a bound application, by name."""
    found, waiting = {}, [app]
    while waiting:
        bound = waiting.pop()._bound_deployment
        found[bound.name] = bound
        for argument in (*bound.init_args, *bound.init_kwargs.values()):
            values = argument.values() if isinstance(argument, dict) else [argument]
            waiting += [value for value in values if hasattr(value, "_bound_deployment")]
    return found


def test_the_deploy_file_fits_schema_and_application(bundle):
    document = yaml.safe_load((ROOT / "cluster" / "serve_config.yaml").read_text())
    config = ServeDeploySchema.model_validate(document)
    (own,) = config.applications
    assert own.import_path == "blades_dist.serving.app:application" and config.http_options.host == "127.0.0.1"
    app = application(own.args | {"detector": str(bundle)})
    assert {item.name for item in own.deployments} <= set(deployments(app))


def test_bounds_of_the_deployments(bundle, tmp_path):
    config = ServiceConfig(detector=bundle, others={"b": bundle}, shadow={"b": bundle}, max_replicas=3, max_decoders=2)
    found = deployments(build(config))
    assert set(found) == {"front", "decode", "jobs", "model-default", "model-b", "shadow-b"}
    for one in found.values():
        assert 0 < one.max_queued_requests < 1000 and one.max_ongoing_requests > 0
    model = found["model-b"]
    assert model.max_ongoing_requests >= 2 * config.max_batch_size
    scaling = model._deployment_config.autoscaling_config
    assert (scaling.min_replicas, scaling.max_replicas) == (1, 3)
    assert found["decode"]._deployment_config.autoscaling_config.max_replicas == 2


def test_a_bundle_alone_changes_no_version(bundle, tmp_path):
    write_bundle(tmp_path / "next", "mahalanobis")
    before, after = (deployments(build(ServiceConfig(detector=folder))) for folder in (bundle, tmp_path / "next"))
    other = deployments(build(ServiceConfig(detector=bundle, max_batch_size=8)))
    assert {name: item.version for name, item in before.items()} == {n: i.version for n, i in after.items()}
    assert before["model-default"].user_config != after["model-default"].user_config
    assert other["model-default"].version != before["model-default"].version


def test_tokens_travel_hashed(bundle, tmp_path, monkeypatch):
    monkeypatch.setenv("BLADES_SERVE_TOKENS", "a-plain-token-of-mine")
    values = deployments(build(ServiceConfig(detector=bundle)))["front"].init_args[0]
    assert values["tokens"][0].startswith("sha256:") and "a-plain-token" not in str(values)


def test_the_job_ends_with_one_line(tmp_path):
    command = [sys.executable, str(ROOT / "jobs" / "serve.py"), f"detector={tmp_path}", "host=0.0.0.0"]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, capture_output=True, text=True, timeout=100, env=environment)
    assert done.returncode == 2 and "host: 0.0.0.0 can be reached from elsewhere" in done.stderr
    assert len(done.stderr.splitlines()) == 1
