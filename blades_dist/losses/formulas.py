"""Formulas of the fidelity losses and their slopes for Triton kernels, in fp32; ``reference`` has them in torch."""

import triton
import triton.language as tl

from blades_dist.losses.reference import EPSILON

_EPSILON = tl.constexpr(EPSILON)
_ROOT_EPSILON = tl.constexpr(EPSILON**0.5)


@triton.jit
def pair(difference: tl.tensor, target: tl.tensor, scale: tl.tensor) -> tuple[tl.tensor, tl.tensor]:
    """1 - sqrt(p t) - sqrt((1 - p)(1 - t)) with p = Phi(scale difference), and its slope in ``difference``."""
    x = scale * difference
    small, bell = normal_tail(tl.abs(x))
    p = tl.where(x < 0, small, 1 - small)
    q = tl.where(x < 0, 1 - small, small)
    above = tl.sqrt(p * target + _EPSILON)
    below = tl.sqrt(q * (1 - target) + _EPSILON)
    density = 0.3989422804014327 * bell  # 1 / sqrt(2 pi)
    return 1 - above - below, 0.5 * scale * density * ((1 - target) / below - target / above)


@triton.jit
def normal_tail(u: tl.tensor) -> tuple[tl.tensor, tl.tensor]:
    """Phi(-u) for u >= 0, to about 4e-7 of its value, and exp(-u^2 / 2), which the density shares.

    exp(u^2 / 2) Phi(-u) is t Q(t) with t = 1 / (1 + 0.27 u) and Q the polynomial of degree 8 of least greatest
    relative error over 0 <= u <= 14 (2.4e-8, fitted for this kernel); beyond that the exponential is zero in fp32.
    """
    t = 1 / (1 + 0.27 * u)
    q = 0.02891539633 * t - 0.1262558542
    q = q * t + 0.1692926124
    q = q * t - 0.06862234119
    q = q * t + 0.1074003582
    q = q * t + 0.07223990317
    q = q * t + 0.1017592621
    q = q * t + 0.1075504931
    q = q * t + 0.1077201818
    bell = tl.exp(-0.5 * u * u)
    return bell * t * q, bell


@triton.jit
def fine(z: tl.tensor, target: tl.tensor) -> tuple[tl.tensor, tl.tensor]:
    """1 - sqrt(p g) - sqrt((1 - p)(1 - g)) with p = sigmoid(z), and its slope in ``z``."""
    small = tl.exp(-tl.abs(z))
    total = 1 + small
    p = tl.where(z < 0, small, 1.0) / total
    q = tl.where(z < 0, 1.0, small) / total
    hit = tl.sqrt(p * target + _EPSILON)
    miss = tl.sqrt(q * (1 - target) + _EPSILON)
    return 1 - hit - miss, 0.5 * p * q * ((1 - target) / miss - target / hit)


@triton.jit
def classes(
    probability: tl.tensor, hit: tl.tensor, columns: tl.tensor, focal: tl.tensor, GAMMA: tl.constexpr
) -> tuple[tl.tensor, tl.tensor]:
    """(1 - p_y)^gamma (1 - fidelity) of each row, gamma 0 unless ``focal``, and its slopes in the logits."""
    p = tl.sum(tl.where(hit, probability, 0.0), 1)
    q = tl.sum(tl.where(hit, 0.0, probability), 1)  # 1 - p without its rounding
    root = tl.sqrt(p + _EPSILON)
    error = 1 - root - (columns - 1) * _ROOT_EPSILON
    factor, factor_slope = power(q, GAMMA)
    factor = tl.where(focal, factor, 1.0)
    factor_slope = tl.where(focal, factor_slope, 0.0)
    slope = -factor_slope * error - 0.5 * factor / root
    return factor * error, (slope * p)[:, None] * tl.where(hit, q[:, None], -probability)


@triton.jit
def power(q: tl.tensor, GAMMA: tl.constexpr) -> tuple[tl.tensor, tl.tensor]:
    """q^gamma and gamma q^(gamma - 1) for q >= 0."""
    if GAMMA == 0.0:
        return tl.full(q.shape, 1.0, tl.float32), tl.zeros(q.shape, tl.float32)
    elif GAMMA == 1.0:
        return q, tl.full(q.shape, 1.0, tl.float32)
    elif GAMMA == 2.0:
        return q * q, 2 * q
    else:
        lower = tl.where(q > 0, tl.exp((GAMMA - 1) * tl.log(tl.maximum(q, 1e-37))), 0.0)
        return q * lower, GAMMA * lower


@triton.jit
def softmax(z: tl.tensor, used: tl.tensor) -> tl.tensor:
    """Over the columns that are in use; zero in the others."""
    z = tl.where(used[None, :], z, -float("inf"))
    raised = tl.exp(z - tl.max(z, 1)[:, None])
    return raised / tl.sum(raised, 1)[:, None]


@triton.jit
def expected(probability: tl.tensor, column: tl.tensor) -> tl.tensor:
    return tl.sum(probability * (1.0 + column[None, :]), 1)
