"""Reading what cluster/ and ray_cluster.yaml say."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from tests.cluster.kuberay import KINDS, RayCluster, RayClusterSpec, RayJob, RayService, cluster_of

ROOT = Path(__file__).parents[2]
CLUSTER = ROOT / "cluster"
RAY_MANIFESTS = ("raycluster.yaml", "rayjob_pretrain.yaml", "rayjob_sweep.yaml", "rayservice.yaml")
CORE_MANIFESTS = ("storage.yaml", "storage_s3.yaml")


def pins() -> dict[str, str]:
    """Package to version, of constraints.txt."""
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    return dict(line.split("==") for line in lines if "==" in line)


def documents(name: str) -> list[dict[str, Any]]:
    return list(yaml.safe_load_all((CLUSTER / name).read_text()))


def resource(name: str) -> RayCluster | RayJob | RayService:
    """A KubeRay manifest, every field checked.

    Raises:
        pydantic.ValidationError: a field that KubeRay does not know, or of another type.
    """
    (found,) = documents(name)
    return KINDS[found["kind"]].model_validate(found)


def cluster_spec(name: str) -> RayClusterSpec:
    return cluster_of(resource(name))


def pod_templates(name: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """Every pod template of a KubeRay manifest, by what it is for."""
    found = resource(name)
    spec = cluster_of(found)
    yield "head", spec.headGroupSpec.template
    for group in spec.workerGroupSpecs:
        yield group.groupName, group.template
    if isinstance(found, RayJob) and found.spec.submitterPodTemplate:
        yield "submitter", found.spec.submitterPodTemplate


def containers(name: str) -> Iterator[tuple[str, dict[str, Any]]]:
    for group, template in pod_templates(name):
        for container in template["spec"]["containers"]:
            yield group, container
