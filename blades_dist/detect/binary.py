"""Binary head: a perceptron on frozen features, real faces against AI faces and pseudo-outliers (paper, BC)."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from functools import cached_property

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from blades_dist.config import BinaryConfig

REAL, GENERATED = 0, 1  # columns of the output layer
HELD_OUT = 0.2  # share of each side on which early stopping looks
PATIENCE = 10  # epochs without a lower held-out loss


@dataclass(frozen=True)
class BinaryHead:
    """Parameters of D -> H -> ReLU -> 2, all float64: ``hidden_weight`` (H, D), ``out_weight`` (2, H)."""

    hidden_weight: np.ndarray
    hidden_bias: np.ndarray
    out_weight: np.ndarray
    out_bias: np.ndarray

    @property
    def dimensions(self) -> int:
        """D, the feature width it scores."""
        return int(self.hidden_weight.shape[1])

    def score(self, features: np.ndarray) -> np.ndarray:
        """(n, D) features to (n,) float64 log-odds of photographic.

        Raises:
            ValueError: features of another width.
        """
        if features.ndim != 2 or features.shape[1] != self.dimensions:
            raise ValueError(f"expected features (n, {self.dimensions}), got {features.shape}")
        hidden_weight, hidden_bias, out_weight, out_bias = self._copies
        rows = torch.tensor(features, dtype=torch.float64)
        logits = F.linear(F.linear(rows, hidden_weight, hidden_bias).relu(), out_weight, out_bias)
        return (logits[:, REAL] - logits[:, GENERATED]).numpy()

    @cached_property
    def _copies(self) -> list[Tensor]:
        # Matrix products may round differently on memory aligned differently; torch's own is always aligned alike.
        return [torch.tensor(value) for value in self.tensors().values()]

    def tensors(self) -> dict[str, np.ndarray]:
        """Every parameter by name, to be stored; ``from_tensors`` is the inverse."""
        return {part.name: getattr(self, part.name) for part in fields(self)}

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, np.ndarray]) -> "BinaryHead":
        """The head of stored parameters.

        Raises:
            ValueError: a parameter is missing, not finite, not float64, or shapes do not fit each other.
        """
        try:
            head = cls(*(tensors[name] for name in ("hidden_weight", "hidden_bias", "out_weight", "out_bias")))
        except KeyError as error:
            raise ValueError(f"perceptron parameter {error} is missing") from None
        for name, value in head.tensors().items():
            if value.dtype != np.float64 or not np.isfinite(value).all():
                raise ValueError(f"perceptron parameter {name!r} is not finite float64")
        h = head.hidden_weight.shape[0] if head.hidden_weight.ndim == 2 else -1
        if (head.hidden_bias.shape, head.out_weight.shape, head.out_bias.shape) != ((h,), (2, h), (2,)):
            shown = {name: value.shape for name, value in head.tensors().items()}
            raise ValueError(f"perceptron parameters do not fit each other: {shown}")
        return head


@dataclass(frozen=True)
class BinaryTraining:
    """How a fit went: rows a side, the epoch kept and its held-out loss (class-balanced cross-entropy, nats)."""

    real: int
    pseudo_outliers: int
    generated: int
    best_epoch: int
    epochs: int
    held_out_loss: float


def fit_binary(
    real: np.ndarray,
    generated: np.ndarray,
    likelihood: np.ndarray,
    config: BinaryConfig,
    seed: int,
    progress: Callable[[int, int], None] | None = None,
) -> tuple[BinaryHead, BinaryTraining]:
    """Perceptron on (n, D) features of real faces and (m, D) of AI faces.

    ``likelihood`` (n,) are the real faces' scores under a one-class head; the share ``config.pseudo_outliers`` of
    lowest ones changes sides. Both sides weigh the same. Equal seeds give equal heads on one machine.

    Raises:
        ValueError: too few faces on a side, or arrays that do not fit each other.
    """
    if len(likelihood) != len(real) or real.shape[1:] != generated.shape[1:]:
        raise ValueError(f"arrays do not fit: {real.shape}, {generated.shape}, likelihood {likelihood.shape}")
    moved = int(config.pseudo_outliers * len(real))
    order = np.argsort(likelihood, kind="stable")
    inside, outside = real[order[moved:]], np.concatenate([real[order[:moved]], generated])
    if len(inside) < 10 or len(generated) < 10:
        raise ValueError(f"{len(inside)} real and {len(generated)} AI faces to train on; 10 of each are the least")

    rows = torch.from_numpy(np.concatenate([inside, outside]).astype(np.float32))
    target = torch.tensor([REAL] * len(inside) + [GENERATED] * len(outside))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        kept, held = _split(target)
        # Features of norm 1 have entries near 1/sqrt(D); a perceptron learns from standardised ones. The
        # standardisation is folded into the first layer afterwards.
        mean, std = rows[kept].mean(0), rows[kept].std(0).clamp_min(1e-6)
        network, best, epoch, loss = _train((rows - mean) / std, target, kept, held, config, progress)
    training = BinaryTraining(len(inside), moved, len(generated), best, epoch, loss)
    return _fold(network, mean, std), training


def _split(target: Tensor) -> tuple[Tensor, Tensor]:
    """Row numbers to train on and held out, the same share of each class, drawn from torch's generator."""
    kept, held = [], []
    for label in (REAL, GENERATED):
        rows = (target == label).nonzero().flatten()
        rows = rows[torch.randperm(len(rows))]
        cut = max(1, round(HELD_OUT * len(rows)))
        held.append(rows[:cut])
        kept.append(rows[cut:])
    return torch.cat(kept), torch.cat(held)


def _train(
    rows: Tensor,
    target: Tensor,
    kept: Tensor,
    held: Tensor,
    config: BinaryConfig,
    progress: Callable[[int, int], None] | None,
) -> tuple[nn.Sequential, int, int, float]:
    network = nn.Sequential(nn.Linear(rows.shape[1], config.hidden), nn.ReLU(), nn.Linear(config.hidden, 2))
    optimiser = torch.optim.AdamW(network.parameters(), lr=config.lr, weight_decay=config.weight_decay)
    balance = 0.5 / torch.bincount(target[kept], minlength=2).div(len(kept)).float()
    best, best_epoch, state, epoch = float("inf"), 0, network.state_dict(), 0
    for epoch in range(1, config.epochs + 1):
        for part in kept[torch.randperm(len(kept))].split(config.batch_size):
            loss = F.cross_entropy(network(rows[part]), target[part], weight=balance)
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
        with torch.no_grad():
            now = float(F.cross_entropy(network(rows[held]), target[held], weight=balance))
        if progress:
            progress(epoch, config.epochs)
        if now < best:
            best, best_epoch = now, epoch
            state = {name: value.clone() for name, value in network.state_dict().items()}
        elif epoch - best_epoch >= PATIENCE:
            break
    if best_epoch == 0:
        raise ValueError("the perceptron's loss is not finite from the first epoch on; lower bc.lr")
    network.load_state_dict(state)
    return network, best_epoch, epoch, best


def _fold(network: nn.Sequential, mean: Tensor, std: Tensor) -> BinaryHead:
    """The trained layers in float64, taking features as the encoder gives them."""
    state = {name: value.double() for name, value in network.state_dict().items()}
    weight = state["0.weight"] / std.double()
    bias = state["0.bias"] - weight @ mean.double()
    return BinaryHead(weight.numpy(), bias.numpy(), state["2.weight"].numpy(), state["2.bias"].numpy())
