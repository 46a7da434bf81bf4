"""What all tests share: one Ray cluster and one pool of gloo ranks a session, since starting them costs seconds."""

import atexit
import os
import shutil
import tempfile

# Small problems, and perhaps another test process beside this one: more threads would only wait for each other. Read
# when torch is first imported.
os.environ.setdefault("OMP_NUM_THREADS", "1")
# Ray's workers would step back for everything else that runs, so that tests which wait for them could starve.
os.environ.setdefault("RAY_worker_niceness", "0")
# Where tests are shared by processes: some of Ray's actors ask "the" cluster of the machine what has died, and take the
# one that was started last; a process of tests must not find the other's. The path is short, as sockets need.
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ["RAY_TMPDIR"] = tempfile.mkdtemp(prefix="ray-", dir="/tmp")
    atexit.register(shutil.rmtree, os.environ["RAY_TMPDIR"], ignore_errors=True)

from collections.abc import Iterator
from pathlib import Path

import hypothesis
import pytest
import torch

# Without a GPU the kernel's tests run it in Triton's interpreter, which is chosen when Triton is first imported: by
# whichever module, so before any other import.
if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")

from blades_dist.config import RayConfig
from blades_dist.raylocal import cluster
from blades_dist.serving.environment import ENVIRONMENT
from blades_dist.testing.gloo import GlooPool

# No example fails for being slow, and under CI the examples are the same ones every time.
hypothesis.settings.register_profile(
    "blades",
    deadline=None,
    derandomize=bool(os.environ.get("CI")),
    suppress_health_check=[hypothesis.HealthCheck.too_slow],
)
hypothesis.settings.load_profile("blades")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Where several processes share the files, those that take longest come first, so that all end together."""
    if hasattr(config, "workerinput"):
        long = {item.path for item in items if item.get_closest_marker("slow")}
        longer = {item.path for item in items if item.get_closest_marker("ray")}
        items.sort(key=lambda item: -(item.path in long) - (item.path in longer))


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
