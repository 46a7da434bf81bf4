"""Joining a Ray cluster, or starting a local one, on the loopback interface only, for as long as a job runs."""

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager

import ray
from ray._private import ray_constants

from blades_dist.config import RayConfig

# Ray's own switch for "this node talks to nobody else": it takes 127.0.0.1 as the node's address, and with it every
# server of the cluster binds to loopback. Ray sets it on desktops only; `ray start` reads the variable.
LOOPBACK_ENVIRONMENT = {"RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0"}


@contextmanager
def cluster(config: RayConfig) -> Iterator[None]:
    """A connection to Ray for the enclosed block.

    Joins the connection that this process already has, else the cluster of ``RAY_ADDRESS`` (set by
    ``ray job submit``); otherwise starts one on loopback and stops it at the end.
    """
    if ray.is_initialized():
        yield
        return
    if os.environ.get("RAY_ADDRESS"):
        ray.init(logging_level=logging.WARNING)
    else:
        os.environ.update(LOOPBACK_ENVIRONMENT)
        # Read from the environment when ray was imported, which is before anyone knew that we start a cluster.
        ray_constants.ENABLE_RAY_CLUSTER = False
        ray.init(
            address="local", num_cpus=config.num_cpus, include_dashboard=False, logging_level=logging.WARNING
        )
    try:
        yield
    finally:
        ray.shutdown()
