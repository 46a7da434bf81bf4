"""What a step moves between workers, in bytes, from the configuration alone; the loop's collectives, added up.

Bytes are what one worker hands to a collective: the whole tensor of an all-reduce (a ring then sends and receives about
twice that), its own part of an all-gather. docs/pretraining.md tabulates it; a test counts the real collectives.
"""

from dataclasses import dataclass

from torch import nn

from blades_dist.config import BilevelConfig, TrainConfig
from blades_dist.losses.reference import label_columns
from blades_dist.models.batchnorm import BatchNorm2d
from blades_dist.tasks import TaskSet

FLOAT = 4


@dataclass(frozen=True)
class Sizes:
    """``params`` trainable values in ``tensors`` tensors; ``channels`` of all synchronised BatchNorm layers."""

    params: int
    tensors: int
    channels: int

    @staticmethod
    def of(module: nn.Module) -> "Sizes":
        trainable = [value for value in module.parameters() if value.requires_grad]
        layers = [layer for layer in module.modules() if isinstance(layer, BatchNorm2d) and layer.mode == "sync"]
        return Sizes(sum(value.numel() for value in trainable), len(trainable), sum(x.num_features for x in layers))


def step_traffic(
    sizes: Sizes, tasks: TaskSet, bilevel: BilevelConfig, train: TrainConfig, outer: bool, engine: str = "deepspeed"
) -> dict[str, int]:
    """Bytes a worker hands over in one step, by part; ``engine`` ``plain`` is torch_engine's. fp32 throughout.

    Padding of ZeRO's partitions to whole alignment is not counted.
    """
    workers, zero = train.worker_range[1], train.zero_stage if engine == "deepspeed" else 0
    if workers == 1:
        return {}
    outer = outer and bilevel.weighting == "bilevel"
    forwards, dual, backwards = _passes(bilevel, train.accumulate, outer)
    whole = FLOAT * sizes.params
    reduces = train.accumulate if zero == 2 else 1  # stage 2 partitions gradients after every micro-batch
    parts = {
        "losses": forwards["losses"] * FLOAT * _loss_floats(tasks, train.batch_size),
        # A gather of mean and variance forward; two sums in forward mode, and the same two backward.
        "batchnorm": FLOAT * 2 * sizes.channels * (forwards["statistics"] + dual + backwards),
        "gradient": whole * reduces,
    }
    if zero:
        parts["parameters after the step"] = whole // workers
    if outer:
        parts |= _outer(sizes, tasks, bilevel, zero)
    return parts


def _passes(bilevel: BilevelConfig, micro: int, outer: bool) -> tuple[dict[str, int], int, int]:
    """Forwards (with a loss, with BatchNorm statistics to find, in all), those with a tangent, and backwards."""
    if not outer:
        return {"losses": micro, "statistics": micro, "all": micro}, 0, micro
    again = 0 if bilevel.reuse_gradient or bilevel.route == "alternating" else 1
    extra = {"exact": micro, "finite_difference": 2 * micro, "alternating": 0}[bilevel.route]
    with_loss = micro + 1 + (extra if bilevel.route == "finite_difference" else 0)
    dual = 0 if bilevel.route == "finite_difference" else micro
    # The exact route's forward-mode pass remembers what the train forward found, if there was one train forward.
    found = 0 if bilevel.route == "exact" and micro == 1 else extra
    forwards = {"losses": with_loss, "statistics": micro + 1 + found, "all": micro + 1 + extra}
    return forwards, dual, micro + 1 + again


def _outer(sizes: Sizes, tasks: TaskSet, bilevel: BilevelConfig, zero: int) -> dict[str, int]:
    whole = FLOAT * sizes.params
    ahead = 0
    if bilevel.route != "alternating":
        if bilevel.reuse_gradient:
            ahead = whole if zero else 0  # the engine's own, made whole again
        elif bilevel.sync == "exact":
            ahead = whole
    moments = 2 * whole if bilevel.lookahead == "adamw" and zero else 0
    products = FLOAT if bilevel.route == "finite_difference" else FLOAT * len(tasks)
    return {
        "look-ahead gradient": ahead,
        "look-ahead moments": moments,
        "v": whole if bilevel.sync == "exact" else 0,
        "hypergradient": products,
    }


def _loss_floats(tasks: TaskSet, rows: int) -> int:
    """Labels and the ordinal tasks' expected levels gathered, K losses reduced."""
    ordinal = sum(task.kind == "ordinal" for task in tasks.tasks)
    return rows * (label_columns(tasks)[-1].stop + ordinal) + len(tasks)
