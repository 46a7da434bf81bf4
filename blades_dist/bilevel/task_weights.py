"""What moves the task weights lambda: nothing, hypergradients, task uncertainty, or rates of descent.

Every rank feeds the same global numbers, so lambda stays bitwise equal on all of them without being sent; ``digest``
tells whether it did. All arithmetic is float64 on the CPU. See docs/weights.md.
"""

import hashlib
import json
import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

BILEVEL = "bilevel"
SOLVED = 1e-3  # a mean fidelity loss that says no more than that the task is solved; they lie between -1e-3 and 1
LARGEST_RATE = 2.0  # between two windows' mean losses that dwa acts on: a loss that doubles is slow to fall already


@dataclass(frozen=True)
class Snapshot:
    """What ``TaskWeights.restore`` takes; opaque to everyone else."""

    state: dict[str, Any]
    entries: int


class TaskWeights:
    """lambda that stays where it starts, and the interface of every lambda that moves.

    ``value`` (K,) holds the effective weights and is changed in place; ``history`` begins with (0, start) and has one
    entry a change. Subclasses extend ``step`` or ``observe``, and ``_state`` and ``_load`` by what else they remember.
    """

    learns: ClassVar[bool] = False  # whether outer steps are taken for it
    frozen: tuple[str, ...] = ()
    normalise: bool = False

    def __init__(self, weighting: str, names: tuple[str, ...], start: Tensor) -> None:
        self.weighting, self.names, self.value = weighting, names, start.clone()
        self.history: list[tuple[int, list[float]]] = [(0, start.tolist())]

    def step(self, hypergradient: Tensor, at_step: int) -> None:
        """Moves lambda against ``hypergradient`` (K,); only where ``learns``.

        Raises:
            FloatingPointError: the hypergradient or what came of it is not finite; nothing was changed.
        """
        raise RuntimeError(f"weighting {self.weighting} takes no outer steps")

    def observe(self, losses: Tensor, at_step: int) -> None:
        """To be called after every optimiser step with its K global train losses, of any dtype and device.

        Raises:
            FloatingPointError: a loss or what came of it is not finite; nothing was changed. Only of weightings that
                look at the losses: the others do not even fetch them from their device.
        """

    def as_dict(self) -> dict[str, float]:
        return dict(zip(self.names, self.value.tolist(), strict=True))

    def snapshot(self) -> Snapshot:
        """Everything that ``step`` and ``observe`` change, for ``restore``; costs a few K floats."""
        return Snapshot(self._state(), len(self.history))

    def restore(self, snapshot: Snapshot) -> None:
        """Puts back, bitwise, what was at ``snapshot``, which is one of this object since its last loading."""
        self._load(snapshot.state)
        del self.history[snapshot.entries :]

    def digest(self) -> int:
        """63 bits of all that future values of lambda depend on; equal where that is bitwise equal."""
        # JSON prints the shortest decimals that read back bitwise, so equal text is equal bits.
        text = json.dumps([self.weighting, self.names, self._state()], sort_keys=True)
        return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1

    def state_dict(self) -> dict[str, Any]:
        """Plain JSON values, exact: Python prints floats so that they read back bitwise."""
        return {**self._identity(), **self._state(), "history": list(self.history)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """The inverse of ``state_dict``.

        Raises:
            ValueError: the state is of other tasks, of another weighting, or other tasks were frozen.
        """
        # States written before there was a choice are bilevel ones.
        theirs = {"weighting": BILEVEL, "frozen": [], **state}
        ours = self._identity()
        if any(theirs[key] != ours[key] for key in ours):
            raise ValueError(f"checkpoint has {_say(theirs)}; this run has {_say(ours)}")
        self._load(state)
        self.history = [(int(step), list(values)) for step, values in state["history"]]

    def report(self) -> dict[str, Any]:
        """JSON values for people: where lambda started, went and ended."""
        columns = list(zip(*(values for _, values in self.history), strict=True))
        return {
            **self._identity(),
            "normalise": self.normalise,
            "moves": len(self.history) - 1,
            "start": dict(zip(self.names, self.history[0][1], strict=True)),
            "final": self.as_dict(),
            "min": dict(zip(self.names, map(min, columns), strict=True)),
            "max": dict(zip(self.names, map(max, columns), strict=True)),
        }

    def _identity(self) -> dict[str, Any]:
        return {"weighting": self.weighting, "names": list(self.names), "frozen": list(self.frozen)}

    def _state(self) -> dict[str, Any]:
        return {"value": self.value.tolist()}

    def _load(self, state: dict[str, Any]) -> None:
        self.value.copy_(_vector(state["value"]))

    def _finite(self, numbers: Tensor, at_step: int, what: str) -> Tensor:
        """``numbers`` (K,) in float64 on the CPU; FloatingPointError naming the tasks where they are not finite."""
        if numbers.shape != self.value.shape:
            raise ValueError(f"{what}: {tuple(numbers.shape)} numbers for {len(self.names)} tasks")
        numbers = numbers.detach().to(self.value)
        finite = torch.isfinite(numbers).tolist()
        if not all(finite):
            bad = ", ".join(name for name, ok in zip(self.names, finite, strict=True) if not ok)
            raise FloatingPointError(f"step {at_step}: {what} of {bad} is not finite")
        return numbers

    @contextmanager
    def _all_or_nothing(self, at_step: int) -> Iterator[None]:
        """Finite inputs may still overflow within: then everything is put back and FloatingPointError raised."""
        before = self.snapshot()
        try:
            yield
            for key, numbers in self._state().items():
                if isinstance(numbers, list) and not all(map(math.isfinite, numbers)):
                    raise FloatingPointError(f"step {at_step}: {key} of the task weights overflowed")
        except FloatingPointError:
            self.restore(before)
            raise

    def _record(self, at_step: int) -> None:
        self.history.append((at_step, self.value.tolist()))


class Bilevel(TaskWeights):
    """Adam along hypergradients, then projection to >= 0, then scaling to mean 1 (BLADES, ICCV 2025, arXiv 2507.22824).

    Frozen tasks keep their value bitwise; a hypergradient of theirs that is not finite is refused all the same, as it
    tells of a batch that cannot be trusted.
    """

    learns = True

    def __init__(
        self,
        names: tuple[str, ...],
        start: Tensor,
        *,
        lr: float,
        eps: float,
        nonnegative: bool,
        normalise: bool,
        frozen: tuple[str, ...],
    ) -> None:
        self._free = torch.tensor([name not in frozen for name in names])
        super().__init__(BILEVEL, names, normalised(start, self._free) if normalise else start)
        self.frozen, self.normalise, self._nonnegative = frozen, normalise, nonnegative
        self._adam = Adam(self.value, lr, eps)

    def step(self, hypergradient: Tensor, at_step: int) -> None:
        gradient = self._finite(hypergradient, at_step, "hypergradient")
        with self._all_or_nothing(at_step):
            # A gradient that is always 0 leaves Adam's moments at 0, and the weight bitwise where it is.
            self._adam.step(torch.where(self._free, gradient, 0.0))
            if self._nonnegative:
                self.value.clamp_(min=0)
            if self.normalise:
                self.value.copy_(normalised(self.value, self._free))
            self._record(at_step)

    def _state(self) -> dict[str, Any]:
        return {**super()._state(), **self._adam.state()}

    def _load(self, state: dict[str, Any]) -> None:
        super()._load(state)
        self._adam.load(state)


class Uncertainty(TaskWeights):
    """Weights exp(-s_i), s moved by Adam down sum_i exp(-s_i) l_i + s_i (Kendall, Gal, Cipolla, CVPR 2018).

    The sum is over the tasks with labels in the batch, which are those whose loss is not 0: for the others the
    objective is s_i alone, and a rarely labelled task would gain weight by not being seen.
    """

    def __init__(self, names: tuple[str, ...], start: Tensor, *, lr: float, eps: float) -> None:
        self._s = -start.log()
        super().__init__("uncertainty", names, torch.exp(-self._s))
        self._adam = Adam(self._s, lr, eps)

    def observe(self, losses: Tensor, at_step: int) -> None:
        losses = self._finite(losses, at_step, "train loss")
        with self._all_or_nothing(at_step):
            self._adam.step(torch.where(losses != 0, 1 - self.value * losses, 0.0))
            self.value.copy_(torch.exp(-self._s))
            self._record(at_step)

    def _state(self) -> dict[str, Any]:
        return {**super()._state(), "s": self._s.tolist(), **self._adam.state()}

    def _load(self, state: dict[str, Any]) -> None:
        super()._load(state)
        self._s.copy_(_vector(state["s"]))
        self._adam.load(state)


class DynamicAverage(TaskWeights):
    """Dynamic weight average (Liu, Johns, Davison, CVPR 2019): more weight for losses that fall slowly.

    After each window of steps but the first, K softmax(r / temperature), where r is the mean loss of that window over
    the mean loss of the window before. A loss of 0 means a batch without labels of the task and is left out of its
    mean; r is 1 where either mean has nothing in it. Fidelity losses of a nearly solved task cross 0, where a
    ratio says nothing of how fast they fall: see ``descent_weights``.
    """

    def __init__(self, names: tuple[str, ...], start: Tensor, *, temperature: float, window: int) -> None:
        super().__init__("dwa", names, start)
        self._temperature, self._window, self._steps = temperature, window, 0
        self._sums, self._counts = torch.zeros_like(start), torch.zeros_like(start)
        self._means: Tensor | None = None  # of the last finished window

    def observe(self, losses: Tensor, at_step: int) -> None:
        losses = self._finite(losses, at_step, "train loss")
        with self._all_or_nothing(at_step):
            self._sums += losses
            self._counts += losses != 0
            self._steps += 1
            if self._steps == self._window:
                self._close_window(at_step)

    def _close_window(self, at_step: int) -> None:
        means = self._sums / self._counts.clamp(min=1)
        if self._means is not None:
            self.value.copy_(descent_weights(means, self._means, self._temperature))
            self._record(at_step)
        self._means, self._steps = means, 0
        self._sums.zero_()
        self._counts.zero_()

    def _state(self) -> dict[str, Any]:
        means = None if self._means is None else self._means.tolist()
        window = {"steps": self._steps, "sums": self._sums.tolist(), "counts": self._counts.tolist()}
        return {**super()._state(), **window, "means": means}

    def _load(self, state: dict[str, Any]) -> None:
        super()._load(state)
        self._steps = int(state["steps"])
        self._sums.copy_(_vector(state["sums"]))
        self._counts.copy_(_vector(state["counts"]))
        self._means = None if state["means"] is None else _vector(state["means"])


class Adam:
    """torch's Adam over one vector, which it changes in place, with a state of plain numbers."""

    def __init__(self, vector: Tensor, lr: float, eps: float) -> None:
        self._vector, self._optimiser = vector, torch.optim.Adam([vector], lr=lr, eps=eps)

    def step(self, gradient: Tensor) -> None:
        self._vector.grad = gradient
        self._optimiser.step()

    def state(self) -> dict[str, Any]:
        moments = self._optimiser.state[self._vector]
        return {
            "steps": int(moments["step"]) if moments else 0,
            "exp_avg": moments["exp_avg"].tolist() if moments else None,
            "exp_avg_sq": moments["exp_avg_sq"].tolist() if moments else None,
        }

    def load(self, state: dict[str, Any]) -> None:
        moments: dict[str, Tensor] = {}
        if state["steps"]:
            moments = {key: _vector(state[key]) for key in ("exp_avg", "exp_avg_sq")}
            moments["step"] = torch.tensor(float(state["steps"]))
        self._optimiser.state[self._vector] = moments


def normalised(value: Tensor, free: Tensor) -> Tensor:
    """``value`` (K,) >= 0 with its entries in the mask ``free`` (K,) scaled so that all K sum to K.

    Raises:
        FloatingPointError: every free entry is 0.
    """
    total = float(value[free].sum())
    if total == 0:
        raise FloatingPointError(
            "all task weights that are not frozen have fallen to 0 and cannot be scaled to mean 1; "
            "set bilevel.normalise=false, or a smaller bilevel.lr"
        )
    wanted = len(value) - float(value[~free].sum())
    return torch.where(free, value * (wanted / total), value)


def descent_weights(last: Tensor, before: Tensor, temperature: float) -> Tensor:
    """K softmax(r / temperature), r = ``last`` / ``before``, the mean losses (K,) of two windows; 0 is no mean.

    Means below ``SOLVED`` count as that, and r is at most ``LARGEST_RATE``: without either, the noise around
    0 of a nearly solved task would take all weight, or none.
    """
    rate = (last.clamp(min=SOLVED) / before.clamp(min=SOLVED)).clamp(max=LARGEST_RATE)
    rate = torch.where((last != 0) & (before != 0), rate, 1.0)
    return len(last) * torch.softmax(rate / temperature, 0)


def _vector(values: list[float]) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def _say(identity: dict[str, Any]) -> str:
    frozen = f", frozen: {', '.join(identity['frozen'])}" if identity["frozen"] else ""
    return f"weighting {identity['weighting']} of tasks {', '.join(identity['names'])}{frozen}"
