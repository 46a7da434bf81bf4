"""How a job meets Ray."""

from pydantic import Field

from blades_dist.settings import Config


class RayConfig(Config):
    num_cpus: int | None = Field(None, ge=1, description="logical CPUs of a cluster started here; None: all")
