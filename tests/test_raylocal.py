"""A cluster started here listens on loopback only."""

import psutil
import pytest
import ray

from blades_dist.config import RayConfig
from blades_dist.raylocal import cluster


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
