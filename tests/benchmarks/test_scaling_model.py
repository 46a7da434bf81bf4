"""The scaling model: its messages are those that the step really sends, its limits are what they must be."""

from collections import Counter
from typing import Any

import numpy as np
import pytest
import step_counts
import torch
from scaling_measure import COUNTS, SETTINGS, fit_line
from scaling_model import (
    H100,
    NETWORKS,
    Link,
    Network,
    Op,
    all_gather,
    all_reduce,
    collectives,
    compute_time,
    efficiency,
    largest_batch,
    live_activations,
    memory,
    network_time,
)
from scaling_work import Copies, Ledger, batch, step_ops
from scaling_work import build_step as counted_step
from torch.utils.flop_counter import FlopCounterMode
from traffic import Sizes, _passes, step_traffic

from blades_dist.config import BilevelConfig, TrainConfig
from blades_dist.distributed import World
from blades_dist.models.batchnorm import BatchNorm2d
from blades_dist.tasks import task_set
from blades_dist.testing.gloo import GlooPool
from tests.benchmarks.test_traffic import Collectives
from tests.problems import LR, build_step, sample, small_config, small_model, train_config

PAPER = Sizes(63_320_000, 400, 26_560)  # near enough the paper's model
LAYERS = 53
ROUTES = [{}, {"reuse_gradient": True}, {"sync": "local"}, {"route": "alternating"}, {"route": "finite_difference"}]


def calls(workers: int, zero: int = 0, **bilevel: Any) -> list[Any]:
    train = TrainConfig(workers=workers, batch_size=48, zero_stage=zero)
    return collectives(PAPER, LAYERS, task_set(), BilevelConfig(**bilevel), train, True)


@pytest.mark.parametrize("bilevel", [{"weighting": "equal"}, *ROUTES, {"lookahead": "adamw"}], ids=str)
@pytest.mark.parametrize("zero", [0, 1, 2])
def test_its_messages_add_up_to_the_documented_traffic(zero: int, bilevel: dict[str, Any]) -> None:
    train = TrainConfig(workers=8, batch_size=48, zero_stage=zero)
    said = step_traffic(PAPER, task_set(), BilevelConfig(**bilevel), train, True)
    found: Counter[str] = Counter()
    for call in calls(8, zero, **bilevel):
        found[call.part] += call.bytes * call.calls
    assert found == pytest.approx({part: size for part, size in said.items() if size}, rel=1e-12)


def test_a_lone_worker_sends_nothing() -> None:
    assert calls(1) == [] and network_time(NETWORKS[0], 1, []) == {}


class Calls(Collectives):
    """How often each kind of collective is called."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.namespace == "c10d":
            self.bytes[func.name().removeprefix("c10d::")] += 1
        return func(*args, **(kwargs or {}))


def counted(bilevel: dict[str, Any]) -> tuple[Counter[str], Counter[str]]:
    """Calls of a real step, and the model's."""
    from blades_dist.training.torch_engine import PlainEngine

    world, rows = World.current(), 8
    config = train_config(workers=world.size, batch_size=rows // world.size)
    model = small_model(world).train()
    step = build_step(PlainEngine(model, config, world), world, config, **bilevel)
    with Calls() as seen:
        step.run(0, LR, [sample(0, 0, rows, world, torch.float32)], sample(0, 1, rows, world, torch.float32))
    layers = sum(isinstance(layer, BatchNorm2d) for layer in model.modules())
    said: Counter[str] = Counter()
    for call in collectives(Sizes.of(model), layers, task_set(), step.bilevel, config, True, "plain"):
        said[call.kind] += call.calls
    found = Counter({kind: sum(n for name, n in seen.bytes.items() if kind.replace("_", "") in name) for kind in said})
    return found, said


@pytest.mark.parametrize("bilevel", ROUTES, ids=str)
def test_it_counts_the_calls_of_a_real_step(bilevel: dict[str, Any], two_ranks: GlooPool) -> None:
    for found, said in two_ranks.run(counted, bilevel):
        found, said = (Counter({key.replace("_", ""): n for key, n in both.items()}) for both in (found, said))
        assert found == said


NODE = Network("one node", 8, Link(1e-6, 1e11), Link(1e-5, 1e9))


@pytest.mark.parametrize("time", [all_reduce, all_gather])
def test_time_of_a_collective_grows_with_size_and_workers(time: Any) -> None:
    assert time(NODE, 1, 1e6) == 0
    for workers in (2, 8, 16, 128, 1024):
        sizes = [time(NODE, workers, size) for size in (0.0, 1e3, 1e6, 1e9)]
        assert sizes == sorted(sizes) and sizes[0] > 0
    for size in (4.0, 1e4, 1e8):
        grown = [time(NODE, 2**i, size) for i in range(11)]
        assert grown == sorted(grown)


def test_limits_of_the_ring_and_the_tree() -> None:
    # Large in one node: twice the bytes through the link, whatever the ring's length (Patarasuk and Yuan, 2009).
    assert all_reduce(NODE, 8, 1e12) == pytest.approx(2 * 7 / 8 * 1e12 / 1e11, rel=1e-3)
    # Small over many nodes: the logarithm of them, not their number.
    inside = 14 * 1e-6
    assert all_reduce(NODE, 1024, 4.0) == pytest.approx(2 * 7 * 1e-5 + inside, rel=1e-2)
    # A gather has no such way out: every other node's part comes by itself.
    assert all_gather(NODE, 1024, 4.0) == pytest.approx(127 * 1e-5 + 7e-6, rel=1e-2)


@pytest.mark.parametrize("network", NETWORKS, ids=lambda network: network.name)
def test_efficiency_falls_with_workers_and_is_one_alone(network: Network) -> None:
    ops = [Op((0.0, 0.0), (1e10, 1e8))] * 500
    alone = compute_time(ops, 48, H100)
    found = [efficiency(alone, alone, network_time(network, n, calls(n))) for n in (1, 2, 8, 16, 64, 256, 1024)]
    assert found[0] == 1 and found == sorted(found, reverse=True) and found[-1] > 0


def test_networks_are_in_order_of_speed() -> None:
    large = [all_reduce(network, 64, 2.5e8) for network in NETWORKS]
    assert large == sorted(large, reverse=True)


def test_local_v_moves_less_and_no_message_grows_with_workers() -> None:
    exact, local = (sum(call.bytes * call.calls for call in calls(64, sync=sync)) for sync in ("exact", "local"))
    assert local < 0.5 * exact
    few, many = ({(c.part, c.kind): c.bytes for c in calls(n)} for n in (8, 1024))
    assert many == few


def test_an_operation_takes_the_longest_of_what_bounds_it() -> None:
    assert compute_time([Op((0, 0), (0, 0))], 1, H100) == H100.launch
    assert compute_time([Op((H100.flops, 0), (0, 0))], 1, H100) == pytest.approx(1)
    assert compute_time([Op((0, 0), (0, H100.bandwidth))], 3, H100) == pytest.approx(3)


def test_memory_falls_with_the_stage_and_grows_with_the_outer_step() -> None:
    stages = [sum(memory(10**8, 8, zero, "exact", False, "exact").values()) for zero in (0, 1, 2)]
    assert stages[1] < stages[0] and stages[2] < stages[1]
    assert sum(memory(10**8, 1, 0, "none", False, "exact").values()) == 16e8  # parameter, gradient, two moments
    plain, alternating, exact = (live_activations(route, False, 1e6, 1e5) for route in ("none", "alternating", "exact"))
    assert plain < alternating < exact
    assert largest_batch(H100, H100.memory, 1e6) == 0
    assert largest_batch(H100, 0, 9e9) == 8


def test_a_line_is_found_again() -> None:
    sizes = np.array([256.0, 65536, 2**20, 2**27])
    link = fit_line(sizes, 2e-4 + sizes / 3e9)
    assert link.latency == pytest.approx(2e-4) and link.bandwidth == pytest.approx(3e9)
    with pytest.raises(ValueError, match="does not grow"):
        fit_line(sizes, 1 / sizes)


@pytest.mark.parametrize("size", [32, 96])
def test_counted_work_is_torchs_own_count_and_linear_in_batch_and_area(size: int) -> None:
    config, world = small_config(), World()
    ops = step_ops(config, size, False, world, {})
    model = small_model().train()
    step = counted_step(model, world, {})
    train, val = batch(3, size, 0), batch(3, size, 1)
    step.run(0, LR, [train], val)
    with FlopCounterMode(display=False) as counter:
        step.run(1, LR, [train], val)
    assert sum(op.at(3)[0] for op in ops) == pytest.approx(counter.get_total_flops(), rel=1e-9)
    assert len(step_ops(config, size, False, Copies(2), {})) > len(ops)  # synchronised statistics are more operations


def test_what_is_no_device_operation_is_not_counted_and_what_takes_lists_is_few() -> None:
    weights, large = [torch.zeros(65_536) for _ in range(111)], torch.zeros(65_536 * 641)
    with Ledger() as ledger:
        torch._foreach_mul_(weights, 2.0)
        torch._foreach_add_(weights, weights)
        torch._foreach_mul_([large], 2.0)
        torch._efficientzerotensor(3)
        torch.ops.aten._has_same_storage_numel(weights[0], weights[1])
        weights[0][:3].view(1, 3)
        weights[0] + 1
    assert [(entry.name.partition(".")[0], entry.launches) for entry in ledger.entries] == [
        ("aten::_foreach_mul_", 2),
        ("aten::_foreach_add_", 2),
        ("aten::_foreach_mul_", 3),
        ("aten::add", 1),
    ]


@pytest.mark.parametrize("route", step_counts.ROUTES)
def test_a_step_s_host_reads_are_few(route: str) -> None:
    assert 1 <= step_counts.host_reads(step_counts.ROUTES[route]).total() <= 12


def test_routes_that_are_measured_do_the_passes_that_traffic_counts() -> None:
    assert COUNTS.keys() == SETTINGS.keys()
    for route, parts in COUNTS.items():
        forwards, _, backwards = _passes(BilevelConfig.model_validate(SETTINGS[route]), 1, route != "plain")
        assert forwards["all"] == sum(n for part, n in parts.items() if "forward" in part), route
        assert backwards == parts["backward"], route
