"""What we use of Ray, DeepSpeed and torch without their promise: each is still there, and used in one place only."""

import ast
import inspect
from collections.abc import Callable, Iterator
from importlib import import_module
from pathlib import Path

import pytest
import ray

ROOT = Path(__file__).parents[1]
RAY = Path(ray.__file__).parent
# Where private interfaces of other packages may be used. models/joint has the package's only one of torch.
HOMES = {
    "blades_dist/ray_private.py": "ray",
    "blades_dist/training/deepspeed_private.py": "deepspeed",
    "blades_dist/models/joint.py": "torch",
    "blades_dist/testing/dispatch.py": "torch",
    "benchmarks/fidelity_loss.py": "torch",
    "benchmarks/scaling_work.py": "torch",
}
LIBRARIES = ("ray", "deepspeed", "torch")
# Operators of torch with an underscore before their names: what its public optimisers, batch_norm and softmax are made
# of. They stand where the mathematics does.
OPERATORS = (
    *(f"_foreach_{name}" for name in ("add", "add_", "clamp_min_", "copy_", "div", "div_", "lerp", "mul", "mul_")),
    *(f"_foreach_{name}" for name in ("norm", "sign", "sqrt_", "sub", "sub_")),
    *("_batch_norm_impl_index", "_softmax_backward_data"),
)
UNDOCUMENTED = ("micro_step_id", "averaged_gradients", "all_grad_tensors", "__compatible_ops__", "RAY_SERVE_")


def has(path: str) -> Callable[[], bool]:
    """Looks "module:attribute.attribute" up."""

    def found() -> bool:
        module, _, attributes = path.partition(":")
        value = import_module(module)
        for name in attributes.split("."):
            value = getattr(value, name)
        return True

    return found


def takes(path: str, parameter: str) -> Callable[[], bool]:
    """Whether the function "module:attribute.attribute" has the parameter."""

    def found() -> bool:
        module, _, attributes = path.partition(":")
        value = import_module(module)
        for name in attributes.split("."):
            value = getattr(value, name)
        return parameter in inspect.signature(value).parameters

    return found


def says(file: str, *texts: str, root: str = "ray") -> Callable[[], bool]:
    """Whether a source file of an installed package holds each text: for what exists in running objects only."""

    def found() -> bool:
        package = RAY if root == "ray" else Path(import_module(root).__file__ or "").parent
        source = (package / file).read_text()
        return all(text in source for text in texts)

    return found


ZERO = "runtime/zero/stage_1_and_2.py"
SERVE, CORE, TRAIN = "serve/_private/constants.py", "_private/ray_constants.py", "train/v2/_internal/execution"
INTERFACES: dict[str, Callable[[], bool]] = {
    "ray: get_default_system_temp_dir": has("ray._common.utils:get_default_system_temp_dir"),
    "ray: ENABLE_RAY_CLUSTER": has("ray._private.ray_constants:ENABLE_RAY_CLUSTER"),
    "ray: GcsClient.get_all_node_info": has("ray._raylet:InnerGcsClient.get_all_node_info"),
    "ray: label ray.io/node-id": lambda: ray._raylet.RAY_NODE_ID_KEY == "ray.io/node-id",
    "ray: get_memory_info_reply": has("ray._private.internal_api:get_memory_info_reply"),
    "ray: get_state_from_address": has("ray._private.internal_api:get_state_from_address"),
    "ray train: logger of execution.context": says(
        f"{TRAIN}/context.py", "logger = logging.getLogger(__file__)", 'f"Reporting training result '
    ),
    "ray train: abort of the controller": has(
        "ray.train.v2._internal.execution.controller.controller:TrainController.abort"
    ),
    "ray data: logger of _internal.progress": has("ray.data._internal.progress:__path__"),
    "ray serve: advice on max_concurrent_batches": says("serve/batching.py", "* `max_concurrent_batches`"),
    "ray serve: Deployment.options(_internal=)": takes("ray.serve.deployment:Deployment.options", "_internal"),
    "ray serve: DeploymentHandle._init": has("ray.serve.handle:DeploymentHandle._init"),
    "ray serve: _run_router_in_separate_loop": says(
        "serve/_private/handle_options.py", "_run_router_in_separate_loop: bool"
    ),
    "ray serve: handle.options(_by_reference=)": says("serve/_private/handle_options.py", "_by_reference: "),
    "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": says(CORE, '"RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"'),
    "RAY_LOGGER_LEVEL": says(CORE, 'os.environ.get("RAY_LOGGER_LEVEL"'),
    "RAY_OVERRIDE_RUNTIME_ENV_DEFAULT_EXCLUDES": says(CORE, '"RAY_OVERRIDE_RUNTIME_ENV_DEFAULT_EXCLUDES"'),
    "RAY_JOB_STOP_WAIT_TIME_S": says("dashboard/modules/job/job_supervisor.py", '"RAY_JOB_STOP_WAIT_TIME_S"'),
    "RAY_worker_niceness": says(CORE, '"RAY_worker_niceness"'),
    "RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH": says(SERVE, '"RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH"'),
    "RAY_SERVE_PROXY_HEALTH_CHECK_PERIOD_S": says(SERVE, '"RAY_SERVE_PROXY_HEALTH_CHECK_PERIOD_S"'),
    "RAY_SERVE_USE_GRPC_BY_DEFAULT": says(SERVE, '"RAY_SERVE_USE_GRPC_BY_DEFAULT"'),
    "RAY_SERVE_REPLICA_GRPC_MAX_MESSAGE_LENGTH": says(SERVE, '"RAY_SERVE_REPLICA_GRPC_MAX_MESSAGE_LENGTH"'),
    "RAY_SERVE_RUN_USER_CODE_IN_SEPARATE_THREAD": says(SERVE, '"RAY_SERVE_RUN_USER_CODE_IN_SEPARATE_THREAD"'),
    "RAY_SERVE_RUN_ROUTER_IN_SEPARATE_LOOP": says(SERVE, '"RAY_SERVE_RUN_ROUTER_IN_SEPARATE_LOOP"'),
    "RAY_SERVE_CONTROL_LOOP_INTERVAL_S": says(SERVE, '"RAY_SERVE_CONTROL_LOOP_INTERVAL_S"'),
    "deepspeed: ops.__compatible_ops__": lambda: (
        "deepspeed_shm_comm" in import_module("deepspeed").ops.__compatible_ops__
    ),
    "deepspeed: scaled_global_norm": says(ZERO, "def scaled_global_norm(", root="deepspeed"),
    "deepspeed: ZeRO's optimizer": says(ZERO, "self.optimizer = ", root="deepspeed"),
    "deepspeed: engine.micro_steps": says("runtime/engine.py", "self.micro_steps = ", root="deepspeed"),
    "deepspeed: micro_step_id": says(
        ZERO, "self.micro_step_id = INITIAL_MICRO_STEP_ID", "INITIAL_MICRO_STEP_ID = -1", root="deepspeed"
    ),
    "deepspeed: averaged_gradients": says(ZERO, "self.averaged_gradients = {}", root="deepspeed"),
    "deepspeed: all_grad_tensors": says(ZERO, "self.all_grad_tensors = {}", root="deepspeed"),
    "deepspeed: _lazy_init_hp_params_optimizer_state": says(
        ZERO, "def _lazy_init_hp_params_optimizer_state(self)", root="deepspeed"
    ),
    "torch: TorchDispatchMode": has("torch.utils._python_dispatch:TorchDispatchMode"),
    "torch: donated_buffer": has("torch._functorch.config:donated_buffer"),
    **{f"torch: {name}": has(f"torch:{name}") for name in OPERATORS},
}


@pytest.mark.parametrize("name", INTERFACES)
def test_a_private_interface_is_still_there(name: str) -> None:
    try:
        found = INTERFACES[name]()
    except (ImportError, AttributeError, OSError) as error:
        found, why = False, f" ({error})"
    else:
        why = ""
    assert found, f"{name} is gone{why}: see what its module says to use in its place"


def test_every_environment_variable_has_a_row() -> None:
    from blades_dist import ray_private

    names = {value for key, value in vars(ray_private).items() if key.isupper() and isinstance(value, str)}
    assert names == {name for name in INTERFACES if name.startswith("RAY_")}


def private_uses(tree: ast.AST) -> Iterator[tuple[str, int]]:
    """Imports of, attributes below, and calls' keywords with a name that begins with one underscore."""
    for node in ast.walk(tree):
        names: list[str] = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and not node.level:
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.Attribute):
            names = [_dotted(node)]
        elif isinstance(node, ast.Call):
            yield from ((f"{word.arg}=", node.lineno) for word in node.keywords if word.arg and _is_private(word.arg))
        for name in names:
            first, *rest = name.split(".")
            if first in LIBRARIES and any(_is_private(part) for part in rest):
                yield name, node.lineno  # type: ignore[attr-defined]


def _dotted(node: ast.expr) -> str:
    """ "a.b.c" of such an expression; empty for one that does not begin with a name."""
    if isinstance(node, ast.Attribute):
        before = _dotted(node.value)
        return f"{before}.{node.attr}" if before else ""
    return node.id if isinstance(node, ast.Name) else ""


def _is_private(name: str) -> bool:
    return name.startswith("_") and name != "__version__"


@pytest.mark.parametrize("folder", ["blades_dist", "jobs", "cluster", "benchmarks"])
def test_private_interfaces_are_used_in_one_place(folder: str) -> None:
    for path in sorted((ROOT / folder).rglob("*.py")):
        name = path.relative_to(ROOT).as_posix()
        text = path.read_text()
        found = [
            f"{name}:{line}: {what}"
            for what, line in private_uses(ast.parse(text))
            if what.removeprefix("torch.") not in OPERATORS
            and (name not in HOMES or not (what.startswith(HOMES[name]) or what.endswith("=")))
        ]
        assert not found, f"{found}: a private interface; put it into blades_dist/*_private.py"
        for attribute in UNDOCUMENTED:
            assert attribute not in text or name in HOMES, f"{name}: {attribute} belongs into {', '.join(HOMES)}"


def test_the_rule_sees_each_form_of_a_private_use() -> None:
    lines = ["import ray._private", "from ray._raylet import X", "ray.a._b.c", "f(_internal=True)", "ray.__version__"]
    source = "\n".join([*lines, "import ray", "torch.cat([self._x]).sum()"])
    expected = {"ray._private", "ray._raylet.X", "ray.a._b.c", "ray.a._b", "_internal="}
    assert {what for what, _ in private_uses(ast.parse(source))} == expected
