"""A service with the cluster that it may start."""

import ipaddress
import os
from pathlib import Path
from typing import Annotated

from pydantic import Field, StringConstraints, model_validator

from blades_dist.config.cluster import GpuShare, RayConfig
from blades_dist.settings import Config

TOKENS_VARIABLE = "BLADES_SERVE_TOKENS"
LOOPBACK_NAMES = ("localhost", "127.0.0.1", "::1")
HashedToken = Annotated[str, StringConstraints(pattern=r"^sha256:[0-9a-fA-F]{64}$")]
Name = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,62}$")]


def is_loopback(host: str) -> bool:
    """Whether a host name or address can only mean this machine."""
    if host in LOOPBACK_NAMES:
        return True
    try:
        return ipaddress.ip_address(host.partition("%")[0]).is_loopback
    except ValueError:
        return False


class ServiceConfig(Config):
    """HTTP endpoint."""

    detector: Path = Field(description="bundle folder that answers unless ?model= names another")
    name: Name = Field("default", description="what ?model= calls it")
    others: dict[Name, Path] = Field({}, description="further bundles by name")
    shadow: dict[Name, Path] = Field(
        {}, description="by the name of a bundle above, another that scores the same faces; disagreement is counted"
    )
    host: str = Field("127.0.0.1", description="other than loopback only with tokens")
    port: int = Field(8000, ge=1, le=65535)
    allowed_hosts: tuple[str, ...] = Field(
        (), description="Host headers taken besides loopback while there is no token"
    )
    tokens_file: Path | None = Field(
        None, description=f"one bearer token a line, plain or as sha256:HEX; also in {TOKENS_VARIABLE}, by commas"
    )
    tokens: tuple[HashedToken, ...] = Field((), description="further tokens, as sha256:HEX only")

    max_bytes: int = Field(20 * 2**20, ge=1, description="largest image file, and largest body of one image")
    max_batch_bytes: int = Field(64 * 2**20, ge=1, description="largest body of many images")
    max_header_bytes: int = Field(16 * 2**10, ge=1024)
    max_pixels: int = Field(50_000_000, ge=1)
    max_files: int = Field(16, ge=1, description="images in one batch or job")
    max_requests: int = Field(32, ge=1, description="requests a front replica works on; more get 503")
    receive_seconds: float = Field(20.0, gt=0, description="a body must have arrived by then")
    deadline_seconds: float = Field(30.0, gt=0, description="an image must have its answer by then")

    fronts: int = Field(1, ge=1, description="replicas that take requests in")
    decoders: int = Field(1, ge=1, description="replicas that decode and locate, at least")
    max_decoders: int | None = Field(None, ge=1, description="at most, by load; None: as many as decoders")
    decode_seconds: float = Field(10.0, gt=0, description="an image that takes longer to decode is refused")
    decode_mebibytes: int = Field(1024, ge=256, description="memory of the process that decodes")
    decoder_cpus: float = Field(0.5, gt=0, description="Ray's logical CPUs of one")

    replicas: int = Field(1, ge=1, description="replicas of every bundle, at least")
    max_replicas: int | None = Field(None, ge=1, description="at most, by load; None: as many as replicas")
    max_batch_size: int = Field(16, ge=1, description="faces judged together")
    batch_wait_seconds: float = Field(0.01, ge=0)
    model_cpus: float = Field(1.0, gt=0, description="Ray's logical CPUs of one; as many threads")
    gpu: GpuShare = Field(
        0.0, description="share of a GPU for every replica of a bundle; false: none, true: a whole one"
    )

    max_jobs: int = Field(64, ge=1, description="asynchronous jobs kept; more get 429")
    max_job_bytes: int = Field(256 * 2**20, ge=1, description="images of all jobs that wait")
    job_seconds: float = Field(3600.0, gt=0, description="a finished job's results are kept so long")
    webhook_hosts: tuple[str, ...] = Field((), description="hosts (or host:port) that results may be posted to")
    webhook_private_hosts: tuple[str, ...] = Field((), description="those of them that may have private addresses")
    webhook_secret_file: Path | None = Field(None, description="key of the signature on what is posted")

    drift_window: int = Field(1000, ge=100, description="latest faces that are compared with the calibration faces")
    drift_alarm: float = Field(0.25, gt=0, description="population stability index from which the log says so")

    @property
    def bundles(self) -> dict[str, Path]:
        """All bundles that answer, the default first."""
        return {self.name: self.detector, **self.others}

    @property
    def authenticated(self) -> bool:
        """Whether requests need a token."""
        return bool(self.tokens) or self.tokens_file is not None or bool(os.environ.get(TOKENS_VARIABLE))

    @model_validator(mode="after")
    def _consistent(self) -> "ServiceConfig":
        if not is_loopback(self.host) and not self.authenticated:
            raise ValueError(
                f"host: {self.host} can be reached from elsewhere, so requests need tokens: set tokens_file or "
                f"{TOKENS_VARIABLE}; allowed without: {', '.join(LOOPBACK_NAMES)}"
            )
        if self.name in self.others:
            raise ValueError(f"others: {self.name!r} is the name of the default bundle")
        if unknown := set(self.shadow) - set(self.bundles):
            raise ValueError(f"shadow: {', '.join(sorted(unknown))} is no bundle; there are {', '.join(self.bundles)}")
        for most, least in (("max_replicas", "replicas"), ("max_decoders", "decoders")):
            bound = getattr(self, most)
            if bound is not None and bound < getattr(self, least):
                raise ValueError(f"{most}: {bound} is less than {least}")
        if self.webhook_hosts and self.webhook_secret_file is None:
            raise ValueError("webhook_secret_file: needed by webhook_hosts, as what is posted is signed")
        if stray := set(self.webhook_private_hosts) - set(self.webhook_hosts):
            raise ValueError(f"webhook_private_hosts: {', '.join(sorted(stray))} is not among webhook_hosts")
        return self


class ServeConfig(ServiceConfig):
    """HTTP endpoint."""

    ray: RayConfig = RayConfig()
