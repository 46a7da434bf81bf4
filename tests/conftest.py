"""What all tests share: one Ray cluster and one pool of gloo ranks a session, since starting them costs seconds."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

# Without a GPU the kernel's tests run it in Triton's interpreter, which is chosen when Triton is first imported: by
# whichever module, so before any other import.
if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")

from blades_dist.config import RayConfig
from blades_dist.raylocal import cluster
from blades_dist.serving.environment import ENVIRONMENT
from tests.gloo import GlooPool


@pytest.fixture(scope="session")
def ray_cluster() -> Iterator[None]:
    os.environ.update(ENVIRONMENT)  # Serve's proxies read it where Ray started
    with cluster(RayConfig(num_cpus=4)):
        yield


@pytest.fixture(scope="session")
def two_ranks() -> Iterator[GlooPool]:
    pool = GlooPool(2)
    yield pool
    pool.close()


@pytest.fixture(scope="session")
def four_ranks() -> Iterator[GlooPool]:
    pool = GlooPool(4)
    yield pool
    pool.close()


@pytest.fixture(scope="session")
def reference_vectors() -> list[Path]:
    """Inputs and outputs of the paper's released code; not part of the project, so their absence is no failure."""
    default = Path(__file__).parents[2] / "shared" / "reference_vectors"
    folder = Path(os.environ.get("BLADES_REFERENCE_VECTORS", default))
    files = sorted(folder.glob("*.npz"))
    if not files:
        pytest.skip(f"no reference vectors in {folder}; BLADES_REFERENCE_VECTORS names the folder")
    return files
