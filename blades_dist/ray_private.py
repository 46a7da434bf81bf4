"""What this project uses of Ray that Ray does not promise to keep: all of it, and nothing of it anywhere else.

Seen in Ray 2.60, the version that ``constraints.txt`` pins. ``tests/test_private_interfaces.py`` looks every one up and
fails by its name when a release of Ray has dropped it; each function says what to use once Ray offers it publicly.
Ray is imported inside the functions, so that the names of environment variables can be read without it.
"""

import logging
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ray.serve import Deployment
    from ray.serve.handle import DeploymentHandle

# Environment variables that Ray reads, without a word in its documentation, in the process that starts a node. Their
# values are chosen where they are set: ``raylocal`` and ``serving.environment``. Public arguments of ``serve.start``,
# ``serve.run`` or ``ray start`` would replace each.
CLUSTER_OF_SEVERAL_NODES = "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"  # "0": the node's address is 127.0.0.1
LOGGER_LEVEL = "RAY_LOGGER_LEVEL"
PACKAGE_EXCLUDES = "RAY_OVERRIDE_RUNTIME_ENV_DEFAULT_EXCLUDES"
JOB_STOP_SECONDS = "RAY_JOB_STOP_WAIT_TIME_S"  # between SIGTERM and SIGKILL of ``ray job stop``
WORKER_NICENESS = "RAY_worker_niceness"
PROXY_MIDDLEWARE = "RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH"  # "module:function" that lists the proxy's middleware
PROXY_HEALTH_CHECK_SECONDS = "RAY_SERVE_PROXY_HEALTH_CHECK_PERIOD_S"
REPLICA_GRPC = "RAY_SERVE_USE_GRPC_BY_DEFAULT"
REPLICA_GRPC_MAX_BYTES = "RAY_SERVE_REPLICA_GRPC_MAX_MESSAGE_LENGTH"
USER_CODE_THREAD = "RAY_SERVE_RUN_USER_CODE_IN_SEPARATE_THREAD"
ROUTER_LOOP = "RAY_SERVE_RUN_ROUTER_IN_SEPARATE_LOOP"
CONTROL_LOOP_SECONDS = "RAY_SERVE_CONTROL_LOOP_INTERVAL_S"


def temporary_folder() -> str:
    """The folder in which Ray makes its session folders; ``RAY_TMPDIR`` moves it. Public replacement: none yet."""
    from ray._common.utils import get_default_system_temp_dir

    return str(get_default_system_temp_dir())


def start_on_loopback() -> None:
    """Has the next ``ray.init`` of this process start a cluster whose servers listen on 127.0.0.1 only.

    Ray reads ``CLUSTER_OF_SEVERAL_NODES`` at its import, which is before anyone knows that a cluster will be started
    here. Public replacement: an address to bind to, as an argument of ``ray.init``.
    """
    from ray._private import ray_constants

    ray_constants.ENABLE_RAY_CLUSTER = False


def nodes(address: str) -> Iterator[tuple[str, str, bool]]:
    """Id, IP address and liveness of every node of the cluster at ``address`` (host:port), without joining it.

    Public replacement: ``ray.util.state.list_nodes``, once it needs no dashboard.
    """
    import ray

    for key, info in ray._raylet.GcsClient(address=address).get_all_node_info().items():
        yield key.hex(), info.node_manager_address, info.state == 0


def object_store() -> Callable[[], tuple[int, int, int]]:
    """Reads the cluster's object stores: bytes used now, bytes of them outside shared memory, bytes spilled so far.

    Needs a connection to Ray. Public replacement: the metric ``ray_object_store_memory``, once it can be read without a
    metrics agent.
    """
    import ray
    from ray._private.internal_api import get_memory_info_reply, get_state_from_address

    state = get_state_from_address(ray.get_runtime_context().gcs_address)

    def read() -> tuple[int, int, int]:
        found = get_memory_info_reply(state).store_stats
        return found.object_store_bytes_used, found.object_store_bytes_fallback, found.spilled_bytes_total

    return read


def mute_train_reports() -> None:
    """Drops the line that Ray Train logs at every ``ray.train.report``, in this worker.

    Ray names the logger after the file that it lies in. Public replacement: a verbosity of ``ray.train``.
    """
    from ray.train.v2._internal.execution import context

    logging.getLogger(context.__file__).addFilter(_is_no_report)


def mute_data_progress() -> None:
    """Drops the warning of Ray Data that its progress bars are off. Public replacement: none needed once they are off
    without a warning."""
    logging.getLogger("ray.data._internal.progress").setLevel(logging.ERROR)


def mute_batching_advice() -> None:
    """Drops Ray Serve's advice to raise ``max_ongoing_requests`` to ``max_batch_size * max_concurrent_batches`` in this
    replica. Public replacement: ``max_concurrent_batches`` without a bound."""
    logging.getLogger("ray.serve").addFilter(_is_no_batching_advice)


def abort_training(controller: Any, seconds: float) -> None:
    """Ends a Ray Train run by its controller's actor handle: workers, placement group and the controller itself.

    Killing the process that called ``fit`` leaves the placement group behind: Ray removes one by itself only when its
    whole job ends. Public replacement: a method of ``TorchTrainer`` that ends a ``fit``.

    Raises:
        ray.exceptions.RayError: the controller has ended already, or takes longer than ``seconds``.
    """
    import ray

    ray.get(controller.abort.remote(), timeout=seconds)


def versioned(deployment: "Deployment", version: str) -> "Deployment":
    """The deployment under a code version of our own: deploying the same one again restarts no replica.

    Ray Serve's own version is random for every deployment. Public replacement: ``Deployment.options(version=...)``,
    which Ray accepts from itself only.
    """
    return deployment.options(version=version, _internal=True)


def route_in_own_loop(handle: "DeploymentHandle[Any]") -> "DeploymentHandle[Any]":
    """The handle, usable in a process without an event loop, whatever ``ROUTER_LOOP`` says to replicas. Ray Serve hands
    out one handle a deployment, which is set up once. Public replacement: an argument of ``get_deployment_handle``."""
    if not handle.is_initialized:
        handle._init(_run_router_in_separate_loop=True)
    return handle


def method_of(handle: "DeploymentHandle[Any]", name: str, by_value: bool) -> "DeploymentHandle[Any]":
    """A method of a deployment; ``by_value``: arguments and result travel by gRPC from replica to replica, instead of
    through the object store. Public replacement: ``REPLICA_GRPC`` as a public option of a handle."""
    return handle.options(method_name=name, _by_reference=not by_value)


def _is_no_report(record: logging.LogRecord) -> bool:
    return not str(record.msg).startswith("Reporting training result")


def _is_no_batching_advice(record: logging.LogRecord) -> bool:
    return "max_concurrent_batches" not in str(record.msg)
