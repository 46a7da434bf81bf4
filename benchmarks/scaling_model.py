"""How long a bi-level step takes on N workers: pure functions of counted work, named machines and named networks.

docs/scaling.md tells what it says; ``scaling.py`` measures, calibrates and writes the tables. Everything is in seconds,
bytes and floating-point operations; bandwidths are of one direction.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import traffic
from traffic import FLOAT, Sizes, step_traffic

from blades_dist.config import BilevelConfig, TrainConfig
from blades_dist.tasks import TaskSet


@dataclass(frozen=True)
class Link:
    """A message of n bytes takes ``latency`` + n / ``bandwidth``."""

    latency: float
    bandwidth: float


@dataclass(frozen=True)
class Network:
    """``per_node`` workers share a node and ``inside``; ``between`` is one worker's share when all of its node send."""

    name: str
    per_node: int
    inside: Link
    between: Link


@dataclass(frozen=True)
class Device:
    """``flops`` and ``bandwidth`` are what is reached, not what is advertised; ``launch`` is the least time of an
    operation that Python starts; ``memory`` in bytes."""

    name: str
    flops: float
    bandwidth: float
    launch: float
    memory: float


@dataclass(frozen=True)
class Op:
    """One operation of a step, linear in the batch: at B rows it takes ``fixed`` + B ``per_row``, (flops, bytes), in
    ``launches`` kernels."""

    fixed: tuple[float, float]
    per_row: tuple[float, float]
    launches: int = 1

    def at(self, rows: int) -> tuple[float, float]:
        flops, moved = (a + rows * b for a, b in zip(self.fixed, self.per_row, strict=True))
        return flops, moved


@dataclass(frozen=True)
class Collective:
    """``calls`` of one kind in a step, ``bytes`` handed over in each."""

    part: str
    kind: str
    bytes: float
    calls: int


# Advertised for one H100 SXM: 989 TFLOP/s in bf16 without sparsity, 3.35 TB/s, 80 GB. Convolutions of a ResNet and
# matrix products of this size reach about half of the first, streaming kernels about four fifths of the second; an
# eager PyTorch operation costs its host about 6 microseconds. Assumptions, not measurements.
H100 = Device("H100 SXM, bf16", 0.5 * 989e12, 0.8 * 3.35e12, 6e-6, 80e9)

_GB, _GBIT = 1e9, 1e9 / 8
_NVLINK = Link(3e-6, 0.8 * 450 * _GB)  # fourth generation, through NVSwitch


def _cluster(name: str, gigabit_a_node: float, latency: float) -> Network:
    return Network(name, 8, _NVLINK, Link(latency, 0.8 * gigabit_a_node * _GBIT / 8))


# Eight GPUs a node on NVLink; 0.8 of the line rate; latencies are typical of NCCL on these, not of a bare message.
NETWORKS = (
    _cluster("25 GbE, 1 port a node", 25, 30e-6),
    _cluster("100 GbE, 1 port a node", 100, 30e-6),
    _cluster("EFA, 400 Gb/s a node", 400, 20e-6),
    _cluster("HDR InfiniBand, 4 x 200 Gb/s a node", 800, 6e-6),
    _cluster("NDR InfiniBand, 8 x 400 Gb/s a node", 3200, 5e-6),
)


def compute_time(ops: Sequence[Op], rows: int, device: Device) -> float:
    """Seconds of a step's own work: each operation takes the longest of its products, its memory and its launch."""
    total = 0.0
    for op in ops:
        flops, moved = op.at(rows)
        total += max(flops / device.flops, moved / device.bandwidth, op.launches * device.launch)
    return total


def all_reduce(network: Network, workers: int, size: float) -> float:
    """Seconds to sum ``size`` bytes over ``workers``: inside each node, then between nodes, a ring or a binary tree
    (whichever is faster), then inside again."""
    if workers == 1:
        return 0.0
    local = min(workers, network.per_node)
    nodes = math.ceil(workers / network.per_node)
    inside = _scatter_and_gather(network.inside, local, size)
    if nodes == 1:
        return min(inside, _tree(network.inside, local, size))
    part = size / local  # each worker of a node carries its share out through its own port
    return inside + min(_scatter_and_gather(network.between, nodes, part), _tree(network.between, nodes, part))


def all_gather(network: Network, workers: int, size: float) -> float:
    """Seconds until every worker has all others' ``size`` bytes; a ring at both levels, which is what NCCL takes when
    several workers share a node."""
    if workers == 1:
        return 0.0
    local, nodes = min(workers, network.per_node), math.ceil(workers / network.per_node)
    between = (nodes - 1) * (network.between.latency + size / network.between.bandwidth)
    return between + (local - 1) * (network.inside.latency + nodes * size / network.inside.bandwidth)


def _scatter_and_gather(link: Link, ranks: int, size: float) -> float:
    return 2 * (ranks - 1) * (link.latency + size / ranks / link.bandwidth)


def _tree(link: Link, ranks: int, size: float) -> float:
    return 2 * math.log2(max(ranks, 2)) * link.latency + 2 * size / link.bandwidth


TIMES = {"all_reduce": all_reduce, "all_gather": all_gather}


def collectives(
    sizes: Sizes,
    layers: int,
    tasks: TaskSet,
    bilevel: BilevelConfig,
    train: TrainConfig,
    outer: bool,
    engine: str = "deepspeed",
) -> list[Collective]:
    """The calls that move what ``step_traffic`` adds up, one at a time (nothing overlaps: engine.deepspeed_config).

    ``layers``: synchronised BatchNorm layers, taken as equally wide.
    """
    moved = step_traffic(sizes, tasks, bilevel, train, outer, engine)
    if not moved:
        return []
    learns = outer and bilevel.weighting == "bilevel"
    forwards, dual, backwards = traffic._passes(bilevel, train.accumulate, learns)
    found = [
        Collective(
            "losses", "all_gather", moved["losses"] / forwards["losses"] - FLOAT * len(tasks), forwards["losses"]
        ),
        Collective("losses", "all_reduce", FLOAT * len(tasks), forwards["losses"]),
    ]
    if layers:
        statistics = FLOAT * 2 * sizes.channels / layers
        found += [
            Collective("batchnorm", "all_gather", statistics, layers * forwards["statistics"]),
            Collective("batchnorm", "all_reduce", statistics, layers * (dual + backwards)),
        ]
    zero = train.zero_stage if engine == "deepspeed" else 0
    calls = {
        # Where ZeRO holds parts, what the outer step needs whole is fetched parameter by parameter.
        "look-ahead gradient": sizes.tensors if zero and bilevel.reuse_gradient else 1,
        "look-ahead moments": 2 * sizes.tensors,
        "gradient": train.accumulate if zero == 2 else 1,
    }
    for part, size in moved.items():
        if size and part not in ("losses", "batchnorm"):
            kind = "all_gather" if part == "parameters after the step" else "all_reduce"
            count = calls.get(part, 1)
            found.append(Collective(part, kind, size / count, count))
    return found


def network_time(network: Network, workers: int, calls: Sequence[Collective]) -> dict[str, float]:
    """Seconds of a step's collectives, by part."""
    found: dict[str, float] = {}
    for call in calls:
        seconds = call.calls * TIMES[call.kind](network, workers, call.bytes)
        found[call.part] = found.get(call.part, 0.0) + seconds
    return found


def efficiency(alone: float, together: float, parts: Mapping[str, float]) -> float:
    """Share of N workers' time that is one worker's own work, at equal rows a worker: 1 is linear scaling.

    ``alone`` is a lone worker's step, ``together`` a step's own work beside others (synchronised BatchNorm does more),
    ``parts`` what it waits for.
    """
    return alone / (together + sum(parts.values()))


def memory(params: int, workers: int, zero: int, route: str, reuse: bool, sync: str) -> dict[str, float]:
    """Bytes a worker holds at a step's peak beside activations; fp32 everywhere, as training.engine has it.

    ``route`` ``none`` is training without an outer step. Not counted: the allocator's own losses, CUDA's context.
    """
    whole = float(FLOAT * params)
    shard = whole / workers if zero else whole
    found = {
        "parameters": whole,
        "ZeRO's own fp32 part": whole / workers if zero else 0.0,
        "gradient": whole if zero < 2 else whole / workers,
        "moments": 2 * shard,
        "bucket of the reduction": whole if workers > 1 else 0.0,
    }
    if route == "none":
        return found
    flat = whole if sync == "exact" and workers > 1 else 0.0
    # Beside the reduction's bucket, which is empty then: the larger of the two is what counts.
    found["bucket of the reduction"] = max(found["bucket of the reduction"], 2 * flat)
    found["v"] = whole
    if route != "alternating":
        found["look-ahead point"] = whole
        found["look-ahead gradient"] = 0.0 if reuse and not zero else whole
    if route == "finite_difference":
        found["moved parameters"] = whole
    return found


def live_activations(route: str, reuse: bool, saved: float, kept: float) -> float:
    """Bytes a row that a step holds at its peak.

    ``saved``: what a forward keeps for its backward; ``kept``: layer results that ``exact`` keeps for forward mode.
    """
    if route == "none":
        return saved
    if route == "alternating":
        return saved + saved / 2  # the tangents of a block or two; half of all is a bound that was not measured
    kept = kept if route == "exact" else 0.0
    return (saved + kept) if reuse else (2 * saved + kept)


def largest_batch(device: Device, fixed: float, per_row: float, reserve: float = 0.1) -> int:
    """Rows a worker that fit beside ``fixed`` bytes, with a share ``reserve`` of the memory left alone."""
    return max(0, int(((1 - reserve) * device.memory - fixed) / per_row))
