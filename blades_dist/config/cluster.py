"""How a job meets Ray."""

from typing import Annotated

from pydantic import Field

from blades_dist.settings import Config

GpuShare = Annotated[
    float, Field(ge=0, le=1, description="share of a GPU for each; false or 0: none, true or 1: a whole one")
]


class RayConfig(Config):
    num_cpus: int | None = Field(None, ge=1, description="logical CPUs of a cluster started here; None: all")
