"""A service with the cluster that it may start."""

from blades_dist.config.cluster import RayConfig
from blades_dist.serving.config import ServiceConfig


class ServeConfig(ServiceConfig):
    """HTTP endpoint."""

    ray: RayConfig = RayConfig()
