"""A cluster started here listens on loopback only."""

import subprocess
import sys
import tempfile
from pathlib import Path

import psutil
import pytest
import ray
from ray._private.utils import write_ray_address

from blades_dist.config import RayConfig
from blades_dist.raylocal import cluster, head


@pytest.mark.ray
def test_nothing_listens_outside_loopback(ray_cluster: None) -> None:
    ray.get(ray.remote(lambda: 1).remote())  # a worker process listens too
    listening = {
        connection.laddr.ip
        for process in psutil.Process().children(recursive=True)
        if "multiprocessing" not in " ".join(process.cmdline())  # the tests' own gloo ranks
        for connection in process.net_connections("inet")
        if connection.status == psutil.CONN_LISTEN
    }
    assert listening
    assert {address.removeprefix("::ffff:") for address in listening} <= {"127.0.0.1", "::1"}


@pytest.mark.ray
def test_an_open_connection_is_joined_and_left_alone(ray_cluster: None) -> None:
    with cluster(RayConfig(num_cpus=1)):
        assert ray.cluster_resources()["CPU"] == 4
    assert ray.is_initialized()


@pytest.mark.ray
def test_a_second_cluster_of_this_machine_takes_its_own_jobs(
    ray_cluster: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first one listens on every port that Ray takes unless told otherwise, and a third one has been started since,
    or so says the file in which Ray keeps "the" cluster of a machine."""
    with tempfile.TemporaryDirectory(prefix="ray-", dir="/tmp") as folder:
        monkeypatch.setenv("RAY_TMPDIR", folder)
        family = set(psutil.Process().children(recursive=True))
        with head() as environment:
            (Path(folder) / "ray").mkdir()
            write_ray_address("127.0.0.1:1", None)
            submit = [Path(sys.executable).parent / "ray", "job", "submit", "--", "printenv", "RAY_ADDRESS"]
            done = subprocess.run(submit, env=environment, capture_output=True, text=True, timeout=600)
            assert done.returncode == 0 and environment["RAY_ADDRESS"] in done.stdout, done.stdout + done.stderr
            started = set(psutil.Process().children(recursive=True)) - family
        assert len(started) > 5 and not psutil.wait_procs(started, 60)[1], "it leaves no process behind"
        assert [path.name for path in Path(folder).iterdir()] == ["ray"], "nor its files"
