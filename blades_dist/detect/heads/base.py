"""What every kind of detector head is: a decision on frozen features, in plain arrays that are stored without pickle.

A kind is one class in a file of this folder: how it is fitted, how it scores, what it stores, its graph for ONNX and
its words. ``heads/__init__`` is the registry that everybody else asks.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Protocol, TypeVar

import numpy as np
import torch
from scipy.special import expit
from torch import nn

from blades_dist.config import HeadConfig
from blades_dist.progress import Say

Item = TypeVar("Item")
Result = TypeVar("Result")


class Head(ABC):
    """A decision on frozen features; larger scores are more like a photograph.

    ``kind`` names it in bundles and configurations, ``config`` is its section there (None: it is never fitted here,
    only imported). ``title`` and ``sentence`` describe it in reports and model cards; ``unit`` is that of its score.
    """

    kind: ClassVar[str]
    config: ClassVar[type[HeadConfig] | None] = None
    title: ClassVar[str]
    unit: ClassVar[str]
    sentence: ClassVar[str]

    @classmethod
    def fit(cls, data: "FitData", config: Any, options: "FitOptions") -> "Fitted":
        """The head of these features, as its section ``config`` says.

        Raises:
            ValueError: too few faces for what is asked, features that are not finite, or a kind without ``config``.
        """
        raise ValueError(f"kind {cls.kind} is imported, not fitted")

    @property
    @abstractmethod
    def dimensions(self) -> int:
        """D, the feature width it scores."""

    @abstractmethod
    def score(self, features: np.ndarray) -> np.ndarray:
        """(n, D) features to (n,) float64 scores; ValueError for another width."""

    @abstractmethod
    def tensors(self) -> dict[str, np.ndarray]:
        """Every parameter by name, to be stored; ``from_tensors`` is the inverse."""

    @classmethod
    @abstractmethod
    def from_tensors(cls, tensors: Mapping[str, np.ndarray], covariance: str | None = None) -> "Head":
        """The head of stored parameters; ``covariance`` is what bundles of mixtures say beside them.

        Raises:
            ValueError: a parameter is missing, unknown, not finite, of another type, or shapes do not fit each other.
        """

    def onnx(self) -> nn.Module | None:
        """A module from (B, D) float32 features to (B,) float64 scores, those of ``score`` up to rounding; None: such
        a head cannot be exported.

        It computes in float64: log-likelihoods are in the thousands, and float32 would leave three decimals of them.
        """
        return None

    def density_rows(self, features: np.ndarray) -> np.ndarray | None:
        """(n, D) features in the (n, P) space whose log-density the score is, to compare it with other densities
        there; None where the score is no log-density that was chosen from data."""
        return None


class ProbabilityHead(Head):
    """A head that has seen AI faces: its score is the log-odds of photographic in nats. ``temperature`` divides them
    before they become a probability; 1 changes nothing."""

    temperature: float

    def probability(self, scores: np.ndarray) -> np.ndarray:
        """(n,) scores to (n,) float64 probabilities of AI-generated, both kinds taken to be equally frequent."""
        return np.asarray(expit(-np.asarray(scores, np.float64) / self.temperature))


def _no_likelihood() -> np.ndarray:
    raise ValueError("no likelihoods of the real faces were given")


@dataclass(frozen=True)
class FitData:
    """``real`` (n, D) features of real faces, and for kinds that need them ``generated`` (m, D) of AI faces, with the
    name of the generator of each in ``generators`` (m,).

    ``likelihood`` gives the (n,) log-likelihoods of the real faces under the configured mixture; it is fitted when it
    is first asked for.
    """

    real: np.ndarray
    generated: np.ndarray | None = None
    generators: Sequence[str] | None = None
    likelihood: Callable[[], np.ndarray] = _no_likelihood


class Runner(Protocol):
    """Runs ``fit(features, item, threads)`` for every item and returns the results in the order of ``items``;
    ``done`` gets each as soon as it is there."""

    def __call__(
        self,
        fit: Callable[[np.ndarray, Item, int | None], Result],
        features: np.ndarray,
        items: Sequence[Item],
        threads: int | None,
        done: Callable[[Result], None],
    ) -> list[Result]: ...


def in_turn(
    fit: Callable[[np.ndarray, Item, int | None], Result],
    features: np.ndarray,
    items: Sequence[Item],
    threads: int | None,
    done: Callable[[Result], None],
) -> list[Result]:
    """A ``Runner`` in this process."""
    found = []
    for item in items:
        found.append(fit(features, item, threads))
        done(found[-1])
    return found


def _silent(_: str) -> None:
    pass


@dataclass(frozen=True)
class FitOptions:
    """How to fit: BLAS and OpenMP run in ``threads`` (None: as they are), ``run`` computes fits that do not depend on
    each other, ``say`` gets lines of progress."""

    seed: int = 0
    threads: int | None = None
    run: Runner = in_turn
    say: Say = _silent


@dataclass(frozen=True)
class Fitted:
    """A head, its figures, what a reader must know of them, and how many AI faces of whom it has seen."""

    head: Head
    figures: dict[str, float] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    generated: dict[str, int] = field(default_factory=dict)
    generated_digest: str | None = None


class ArraysModule(nn.Module):
    """Base of ONNX graphs: a head's arrays as buffers, by the head's names with ``_`` for the dots."""

    def __init__(self, head: Head) -> None:
        super().__init__()
        for name, value in head.tensors().items():
            self.register_buffer(name.replace(".", "_"), torch.tensor(value))


def told(what: str, say: Say) -> Callable[[int, int], None]:
    """Progress as lines, one a tenth of the way."""
    last = -1

    def progress(done: int, total: int) -> None:
        nonlocal last
        tenth = 10 * done // max(1, total)
        if tenth > last:
            last = tenth
            say(f"{what}: {done} of {total}")

    return progress
