"""Perceptron (paper, BC): one hidden layer on frozen features of real and of AI faces.

It is fitted to real faces against AI faces and pseudo-outliers, and stopped by generators held out; plain arrays
remain.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from blades_dist.config import PerceptronConfig
from blades_dist.detect.heads.arrays import check_features, checked, shapes
from blades_dist.detect.heads.base import ArraysModule, FitData, FitOptions, Fitted, ProbabilityHead, told
from blades_dist.detect.heads.temperature import HIGHEST, LOWEST, balanced_loss, fit_temperature

REAL, GENERATED = 0, 1  # columns of the output layer
FOLDS = 5  # at most; a fold holds out this part of the real faces
LEAST = 10  # faces a side
_ROWS_AT_ONCE = 4096
_LAYERS = ("hidden_weight", "hidden_bias", "out_weight", "out_bias")


@dataclass(frozen=True)
class PerceptronHead(ProbabilityHead):
    """Parameters of D -> H -> ReLU -> 2, all float64: ``hidden_weight`` (H, D), ``out_weight`` (2, H).

    ``temperature`` divides the log-odds before they become a probability; 1 changes nothing.
    """

    kind = PerceptronConfig.kind
    config = PerceptronConfig
    title = "perceptron"
    unit = "log-odds of photographic (nats)"
    sentence = (
        "A perceptron with one hidden layer, trained on features of real and of AI-generated faces. "
        "The score is the log-odds of photographic in nats, before the temperature that probabilities use."
    )

    hidden_weight: np.ndarray
    hidden_bias: np.ndarray
    out_weight: np.ndarray
    out_bias: np.ndarray
    temperature: float = 1.0

    @classmethod
    def fit(cls, data: FitData, config: PerceptronConfig, options: FitOptions) -> Fitted:
        """Real faces are ranked by the mixture's likelihood, for the pseudo-outliers among them."""
        if data.generated is None:
            raise ValueError(f"kind {cls.kind} needs features of AI faces")
        likelihood, generators = data.likelihood(), data.generators
        makers = len(set(generators)) if generators is not None else 1
        options.say(f"fitting the perceptron on {len(data.generated)} AI faces of {makers} generators")
        progress = told("epoch", options.say)
        found = fit_perceptron(data.real, data.generated, likelihood, config, options.seed, progress, generators)
        return Fitted(found[0], found[1].figures(), found[1].notes)

    @property
    def dimensions(self) -> int:
        """D, the feature width it scores."""
        return int(self.hidden_weight.shape[1])

    def score(self, features: np.ndarray) -> np.ndarray:
        """(n, D) features to (n,) float64 log-odds of photographic in nats, before the temperature.

        Raises:
            ValueError: features of another width.
        """
        check_features(features, self.dimensions)
        hidden_weight, hidden_bias, out_weight, out_bias = self._copies
        rows = torch.tensor(features, dtype=torch.float64)
        logits = F.linear(F.linear(rows, hidden_weight, hidden_bias).relu(), out_weight, out_bias)
        return (logits[:, REAL] - logits[:, GENERATED]).numpy()

    @cached_property
    def _copies(self) -> list[Tensor]:
        # Matrix products may round differently on memory aligned differently; torch's own is always aligned alike.
        return [torch.tensor(value) for value in self._layers().values()]

    def _layers(self) -> dict[str, np.ndarray]:
        return {name: getattr(self, name) for name in _LAYERS}

    def onnx(self) -> nn.Module:
        return _Graph(self)

    def tensors(self) -> dict[str, np.ndarray]:
        """Every parameter by name, to be stored; ``from_tensors`` is the inverse."""
        return {**self._layers(), "temperature": np.array([self.temperature])}

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, np.ndarray], covariance: str | None = None) -> "PerceptronHead":
        """The head of stored parameters; without ``temperature`` (as older ones are) it is 1.

        Raises:
            ValueError: a parameter is missing, not finite, not float64, or shapes do not fit each other.
        """
        found = checked("perceptron", tensors, _LAYERS, optional=("temperature",))
        temperature = found.pop("temperature", np.ones(1))
        if temperature.shape != (1,) or temperature[0] <= 0:
            raise ValueError(f"perceptron parameter 'temperature' is {temperature}, expected one positive number")
        head = cls(**found, temperature=float(temperature[0]))
        h = head.hidden_weight.shape[0] if head.hidden_weight.ndim == 2 else -1
        if (head.hidden_bias.shape, head.out_weight.shape, head.out_bias.shape) != ((h,), (2, h), (2,)):
            raise ValueError(f"perceptron parameters do not fit each other: {shapes(found)}")
        return head


@dataclass(frozen=True)
class HeldOut:
    """What the folds said of one generator's ``n`` faces against held-out real ones, at the epoch kept.

    ``loss``: class-balanced cross-entropy in nats; ``auc``: area under the ROC curve.
    """

    n: int
    loss: float
    auc: float


@dataclass(frozen=True)
class PerceptronTraining:
    """How a fit went: faces a side, the epochs that the head was trained for, and what held-out faces said of them.

    ``held_out`` tells whether the folds held out whole generators or, for want of a second one, faces;
    ``held_out_loss`` is the mean over folds in nats, ``epochs`` how many were tried, ``notes`` warnings to pass on.
    """

    real: int
    pseudo_outliers: int
    generated: int
    held_out: Literal["generators", "faces"]
    folds: int
    best_epoch: int
    epochs: int
    held_out_loss: float
    temperature: float
    generators: dict[str, HeldOut]
    notes: tuple[str, ...] = ()

    def figures(self) -> dict[str, float]:
        """The numbers by name, a generator's as ``held_out_loss_NAME`` and ``held_out_auc_NAME``."""
        names = (
            "real",
            "pseudo_outliers",
            "generated",
            "folds",
            "best_epoch",
            "epochs",
            "held_out_loss",
            "temperature",
        )
        found = {name: float(getattr(self, name)) for name in names}
        for generator, own in self.generators.items():
            found |= {f"held_out_loss_{generator}": own.loss, f"held_out_auc_{generator}": own.auc}
        return found


@dataclass(frozen=True)
class _Fold:
    kept: Tensor
    held: Tensor


def fit_perceptron(
    real: np.ndarray,
    generated: np.ndarray,
    likelihood: np.ndarray,
    config: PerceptronConfig,
    seed: int,
    progress: Callable[[int, int], None] | None = None,
    generators: Sequence[str] | None = None,
) -> tuple[PerceptronHead, PerceptronTraining]:
    """Perceptron on (n, D) features of real faces and (m, D) of AI faces, ``generators`` (m,) naming who made them.

    ``likelihood`` (n,) are the real faces' scores under a mixture; the share ``config.pseudo_outliers`` of
    lowest ones changes sides. Both sides weigh the same. The number of epochs is the one with the lowest loss on
    what the folds hold out: a generator's faces (several generators' where there are more than five) and a fifth of
    the real ones, each fold another; pseudo-outliers are never held out. The head is then trained on everything for
    that many epochs, and the folds' held-out scores give its temperature. With one generator, or none named, faces
    are held out instead. Equal seeds give equal heads on one machine with equal threads.

    Raises:
        ValueError: too few faces on a side, arrays that do not fit each other, or training that diverges.
    """
    if len(likelihood) != len(real) or real.shape[1:] != generated.shape[1:]:
        raise ValueError(f"arrays do not fit: {real.shape}, {generated.shape}, likelihood {likelihood.shape}")
    names = np.asarray(["generated"] * len(generated) if generators is None else list(generators), dtype=str)
    if len(names) != len(generated):
        raise ValueError(f"arrays do not fit: {len(generated)} AI faces, {len(names)} names of generators")
    moved = int(config.pseudo_outliers * len(real))
    order = np.argsort(likelihood, kind="stable")
    inside = len(real) - moved
    if inside < LEAST or len(generated) < LEAST:
        raise ValueError(f"{inside} real and {len(generated)} AI faces to train on; {LEAST} of each are the least")

    rows = torch.from_numpy(np.concatenate([real[order[moved:]], real[order[:moved]], generated]).astype(np.float32))
    target = torch.tensor([REAL] * inside + [GENERATED] * (moved + len(generated)))
    maker = np.concatenate([np.full(inside + moved, ""), names])  # "": no generator
    folds = _folds(inside, maker, seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        runs = [_Run(rows, target, fold.kept, config) for fold in folds]
        best, epochs, loss, scores = _cross_validate(runs, folds, target, config, progress)
        final = _Run(rows, target, torch.arange(len(rows)), config)
        for _ in range(best):
            final.epoch()
    held = np.concatenate([fold.held.numpy() for fold in folds])
    temperature = fit_temperature(np.concatenate(scores), held >= inside)
    by_generator = len(set(names.tolist())) > 1
    training = PerceptronTraining(
        real=inside,
        pseudo_outliers=moved,
        generated=len(generated),
        held_out="generators" if by_generator else "faces",
        folds=len(folds),
        best_epoch=best,
        epochs=epochs,
        held_out_loss=loss,
        temperature=temperature,
        generators={name: _held_out(name, maker, folds, scores, inside) for name in sorted(set(names.tolist()))},
        notes=_notes(by_generator, best, temperature, config),
    )
    return replace(final.head(), temperature=temperature), training


def _folds(inside: int, maker: np.ndarray, seed: int) -> list[_Fold]:
    """Disjoint parts to hold out: whole generators, or faces where there is one; ``inside`` real rows come first."""
    random = np.random.default_rng(seed)
    names, counts = np.unique(maker[maker != ""], return_counts=True)
    fakes = np.flatnonzero(maker != "")
    if len(names) > 1:
        groups: list[list[str]] = [[] for _ in range(min(FOLDS, len(names)))]
        sizes = [0] * len(groups)
        for i in np.argsort(-counts, kind="stable"):  # the largest first, into the group with the fewest faces
            smallest = sizes.index(min(sizes))
            groups[smallest].append(names[i])
            sizes[smallest] += int(counts[i])
        parts = [fakes[np.isin(maker[fakes], group)] for group in groups]
    else:
        parts = np.array_split(random.permutation(fakes), FOLDS)
    reals = np.array_split(random.permutation(inside), FOLDS)
    everything = np.arange(len(maker))
    held = [np.sort(np.concatenate(pair)) for pair in zip(reals, parts, strict=False)]
    return [_Fold(torch.from_numpy(np.setdiff1d(everything, part)), torch.from_numpy(part)) for part in held]


class _Run:
    """One network in training on the rows ``kept``."""

    def __init__(self, rows: Tensor, target: Tensor, kept: Tensor, config: PerceptronConfig) -> None:
        self.rows, self.target, self.kept, self.batch_size = rows, target, kept, config.batch_size
        # Features of norm 1 have entries near 1/sqrt(D); a perceptron learns from standardised ones. The
        # standardisation is folded into the first layer afterwards.
        own = rows[kept]
        self.mean, self.std = own.mean(0), own.std(0).clamp_min(1e-6)
        self.balance = 0.5 / torch.bincount(target[kept], minlength=2).div(len(kept)).float()
        self.network = nn.Sequential(nn.Linear(rows.shape[1], config.hidden), nn.ReLU(), nn.Linear(config.hidden, 2))
        self.optimiser = torch.optim.AdamW(self.network.parameters(), lr=config.lr, weight_decay=config.weight_decay)

    def epoch(self) -> None:
        for part in self.kept[torch.randperm(len(self.kept))].split(self.batch_size):
            logits = self.network((self.rows[part] - self.mean) / self.std)
            loss = F.cross_entropy(logits, self.target[part], weight=self.balance)
            self.optimiser.zero_grad()
            loss.backward()
            self.optimiser.step()

    @torch.no_grad()
    def scores(self, chosen: Tensor) -> np.ndarray:
        """(n,) row numbers to (n,) float64 log-odds of photographic."""
        logits = [self.network((self.rows[part] - self.mean) / self.std) for part in chosen.split(_ROWS_AT_ONCE)]
        both = torch.cat(logits).double()
        return (both[:, REAL] - both[:, GENERATED]).numpy()

    def head(self) -> PerceptronHead:
        """The trained layers in float64, taking features as the encoder gives them."""
        state = {name: value.double() for name, value in self.network.state_dict().items()}
        weight = state["0.weight"] / self.std.double()
        bias = state["0.bias"] - weight @ self.mean.double()
        return PerceptronHead(weight.numpy(), bias.numpy(), state["2.weight"].numpy(), state["2.bias"].numpy())


def _cross_validate(
    runs: Sequence[_Run],
    folds: Sequence[_Fold],
    target: Tensor,
    config: PerceptronConfig,
    progress: Callable[[int, int], None] | None,
) -> tuple[int, int, float, list[np.ndarray]]:
    """The epoch of lowest mean held-out loss, epochs run, that loss, and each fold's held-out scores there.

    All folds advance by one epoch at a time, so that one curve, their mean, decides when to stop.
    """
    generated = [(target[fold.held] == GENERATED).numpy() for fold in folds]
    best, best_epoch, kept, epoch = float("inf"), 0, [np.empty(0)], 0
    for epoch in range(1, config.epochs + 1):
        for run in runs:
            run.epoch()
        scores = [run.scores(fold.held) for run, fold in zip(runs, folds, strict=True)]
        now = float(np.mean([balanced_loss(own, side) for own, side in zip(scores, generated, strict=True)]))
        if progress:
            progress(epoch, config.epochs)
        if now < best:
            best, best_epoch, kept = now, epoch, scores
        elif epoch - best_epoch >= config.patience:
            break
    if best_epoch == 0:
        raise ValueError("the perceptron's loss is not finite from the first epoch on; lower bc.lr")
    return best_epoch, epoch, best, kept


def _held_out(
    name: str, maker: np.ndarray, folds: Sequence[_Fold], scores: Sequence[np.ndarray], inside: int
) -> HeldOut:
    """Mean over the folds that hold faces of the generator out, each weighing as many as it holds."""
    from sklearn.metrics import roc_auc_score

    counts, losses, areas = [], [], []
    for fold, own in zip(folds, scores, strict=True):
        held = fold.held.numpy()
        theirs = maker[held] == name
        if not theirs.any():
            continue
        pair = theirs | (held < inside)
        counts.append(int(theirs.sum()))
        losses.append(balanced_loss(own[pair], theirs[pair]))
        areas.append(float(roc_auc_score(~theirs[pair], own[pair])))
    return HeldOut(sum(counts), float(np.average(losses, weights=counts)), float(np.average(areas, weights=counts)))


def _notes(by_generator: bool, best: int, temperature: float, config: PerceptronConfig) -> tuple[str, ...]:
    notes = []
    if not by_generator:
        notes.append(
            "AI faces of one generator only: the number of epochs and the temperature come from held-out faces of that "
            "same generator, and say nothing about others"
        )
    elif best == 1:
        notes.append(
            "the held-out loss rose from the first epoch on: what tells one generator's faces apart does not carry "
            "over to the others; see their losses, and try a lower bc.lr"
        )
    if best == config.epochs:
        notes.append(f"the held-out loss was still falling at the last epoch; raise bc.epochs above {config.epochs}")
    if not 1.01 * LOWEST < temperature < 0.99 * HIGHEST:
        notes.append(f"the temperature {temperature:.3g} is at its limit: probabilities are not calibrated")
    return tuple(notes)


class _Graph(ArraysModule):
    hidden_weight: Tensor
    hidden_bias: Tensor
    out_weight: Tensor
    out_bias: Tensor

    def forward(self, features: Tensor) -> Tensor:
        hidden = F.linear(features.double(), self.hidden_weight, self.hidden_bias).relu()
        logits = F.linear(hidden, self.out_weight, self.out_bias)
        return logits[:, REAL] - logits[:, GENERATED]
