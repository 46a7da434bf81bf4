"""What all tests share: one Ray cluster a session, since starting one costs seconds."""

from collections.abc import Iterator

import pytest

from blades_dist.config import RayConfig
from blades_dist.raylocal import cluster


@pytest.fixture(scope="session")
def ray_cluster() -> Iterator[None]:
    with cluster(RayConfig(num_cpus=4)):
        yield
