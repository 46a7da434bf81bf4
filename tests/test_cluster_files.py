"""Cluster files agree with Ray's schema and with the pinned versions."""

import json
from pathlib import Path

import jsonschema
import ray.autoscaler
import yaml

ROOT = Path(__file__).parents[1]


def test_ray_cluster_yaml_fits_the_launchers_schema() -> None:
    schema = json.loads((Path(ray.autoscaler.__file__).parent / "ray-schema.json").read_text())
    config = yaml.safe_load((ROOT / "ray_cluster.yaml").read_text())
    jsonschema.validate(config, schema)
    commands = config["head_start_ray_commands"] + config["worker_start_ray_commands"]
    assert all("RAY_AUTH_MODE=token" in command for command in commands if " start " in command)
    assert any("--dashboard-host=127.0.0.1" in command for command in commands)


def test_every_install_reads_the_one_constraints_file() -> None:
    pins = dict(line.split("==") for line in (ROOT / "constraints.txt").read_text().splitlines() if "==" in line)
    assert pins["torch"] == "2.13.0" and pins["ray"] == ray.__version__
    installs = [line for line in (ROOT / "Makefile").read_text().splitlines() if " pip install " in line]
    assert installs and all("--constraint constraints.txt" in line for line in installs)
    assert "make install" in (ROOT / "cluster" / "Containerfile").read_text()
