"""The virtual inner step that the outer objective is evaluated after, and its derivative.

Both steps are theta' = theta - lr (u(g) + wd theta) at g = sum_i lambda_i g_i, with u the identity (sgd) or AdamW's
update, after clipping. Hence d theta' / d lambda_i = -lr P g_i with P = du/dg, and for a cotangent v of theta'

    d l / d lambda_i = -lr <g_i, P^T v>

so that whatever the inner step is, an outer step needs one vector: ``Lookahead.adjoint(v)`` = P^T v.

All parameters go through each operation together (torch's foreach operations: on a GPU a few launches whatever their
number), and nothing here reads a number from the device: step sizes and counts may be scalars that live there.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

Params = dict[str, Tensor]
Scalar = float | Tensor  # a number, or one of zero dimensions on the parameters' device
Tensors = list[Tensor] | tuple[Tensor, ...]
CLIP_EPSILON = 1e-6  # of torch.nn.utils.clip_grad_norm_ and of DeepSpeed


@dataclass(frozen=True)
class Lookahead:
    """``point`` = theta', detached new tensors; ``adjoint`` maps a cotangent v of theta' to P^T v."""

    point: Params
    adjoint: Callable[[Params], Params]


@dataclass(frozen=True)
class AdamW:
    """AdamW's constants and its state before the step; ``step`` counts the steps taken (0: moments are zero)."""

    exp_avg: Params
    exp_avg_sq: Params
    step: int | Tensor
    betas: tuple[float, float]
    eps: float

    @property
    def corrections(self) -> tuple[Scalar, Scalar]:
        """1 - beta^t of both moments at the step to come."""
        first, second = self.betas
        return 1 - first ** (self._taken + 1), 1 - second ** (self._taken + 1)

    @property
    def mean(self) -> Params:
        """The first moment, corrected for its start at zero; only after a step was taken."""
        return _named(self.exp_avg, _over(_values(self.exp_avg), 1 - self.betas[0] ** self._taken))

    @property
    def _taken(self) -> Scalar:
        # In fp32 1 - 0.999^t would have lost five digits at the first steps.
        return self.step.double() if isinstance(self.step, Tensor) else self.step


def sgd_lookahead(
    params: Params, gradient: Params, lr: Scalar, weight_decay: float, clip_norm: float = 0.0
) -> Lookahead:
    """theta' = theta - lr (clip(gradient) + weight_decay theta), DESIGN section 4. ``clip_norm`` 0: no clipping."""
    coefficient, project = _clip(gradient, clip_norm)
    return Lookahead(_moved(params, [gradient[name] for name in params], -lr * coefficient, lr * weight_decay), project)


def adamw_lookahead(
    params: Params, gradient: Params, lr: Scalar, weight_decay: float, state: AdamW, clip_norm: float = 0.0
) -> Lookahead:
    """theta' as AdamW with decoupled decay takes it (Loshchilov and Hutter, 2019), bias correction included."""
    coefficient, project = _clip(gradient, clip_norm)
    g = [gradient[name] for name in params]
    clipped = _times(g, coefficient) if clip_norm else g
    first, second = state.corrections
    update = _over(torch._foreach_lerp(clipped, [state.exp_avg[name] for name in params], state.betas[0]), first)
    root = _root(clipped, [state.exp_avg_sq[name] for name in params], state.betas[1], second)
    torch._foreach_add_(root, state.eps)
    torch._foreach_div_(update, root)

    def adjoint(v: Params) -> Params:
        return project(adamw_adjoint(v, _named(params, clipped), state))

    return Lookahead(_moved(params, update, -lr, lr * weight_decay), adjoint)


def adamw_adjoint(v: Params, gradient: Params, state: AdamW) -> Params:
    """P^T v of AdamW's update without clipping at ``gradient``: it acts on each element alone, so P is diagonal.

    With m and s the moments before the step, root = sqrt(s_hat) and c1, c2 the bias corrections,

        du/dg = ([(1 - b1) b2 s - b1 (1 - b2) m g] / (c2 root) + (1 - b1) eps) / (c1 (root + eps)^2).

    The terms in g^2 of the quotient rule cancel; written like this they cannot leave a rounding error behind, which
    at the first step (m = s = 0, where u is nearly sign(g)) would be larger than the derivative.
    """
    (beta1, beta2), (first, second) = state.betas, state.corrections
    g, m, s = ([part[name] for name in v] for part in (gradient, state.exp_avg, state.exp_avg_sq))
    root = _root(g, s, beta2, second)
    bracket = list(torch._foreach_mul(s, (1 - beta1) * beta2))
    torch._foreach_sub_(bracket, torch._foreach_mul(torch._foreach_mul(m, beta1 * (1 - beta2)), g))
    # root = 0 means g = s = 0 (and so m = 0): the bracket vanishes faster than root.
    below = _times(root, second)
    torch._foreach_clamp_min_(below, torch.finfo(below[0].dtype).tiny)
    torch._foreach_div_(bracket, below)
    torch._foreach_mul_(bracket, torch._foreach_sign(root))
    torch._foreach_add_(bracket, (1 - beta1) * state.eps)
    torch._foreach_add_(root, state.eps)
    torch._foreach_mul_(bracket, list(v.values()))
    torch._foreach_div_(bracket, _times(torch._foreach_mul(root, root), first))
    return _named(v, bracket)


def norm(tensors: Iterable[Tensor]) -> Tensor:
    """Euclidean norm of all elements together, a scalar."""
    return torch.linalg.vector_norm(torch.stack(torch._foreach_norm(list(tensors))))


def clip_coefficient(size: Tensor, bound: float) -> Tensor:
    """What clipping a gradient of norm ``size`` to ``bound`` scales it by; 1 also where the norm is not a number."""
    coefficient = bound / (size + CLIP_EPSILON)
    return torch.where(coefficient < 1, coefficient, 1.0)


def _clip(gradient: Params, bound: float) -> tuple[Scalar, Callable[[Params], Params]]:
    """The factor s that clipping scales ``gradient`` by, and P^T of g -> s(g) g.

    Where the norm n exceeds the bound, s = bound / (n + eps) shrinks as g grows: P = s (1 - g g^T / (n (n + eps))).
    """
    if not bound:
        return 1.0, lambda v: v
    size = norm(gradient.values())
    coefficient = clip_coefficient(size, bound)

    def project(v: Params) -> Params:
        values, g = _values(v), [gradient[name] for name in v]
        along = torch.cat([part.reshape(-1) for part in torch._foreach_mul(g, values)]).sum()
        share = torch.where(coefficient < 1, along / (size * (size + CLIP_EPSILON)), 0.0)
        return _named(v, _times(torch._foreach_sub(values, _times(g, share)), coefficient))

    return coefficient, project


def _moved(params: Params, along: Tensors, factor: Scalar, decay: Scalar) -> Params:
    """(1 - decay) theta + factor along, detached."""
    point = _times([value.detach() for value in params.values()], 1 - decay)
    if isinstance(factor, Tensor):
        torch._foreach_add_(point, _times(along, factor))
    else:
        torch._foreach_add_(point, along, alpha=factor)
    return _named(params, point)


def _root(g: Tensors, exp_avg_sq: Tensors, beta: float, correction: Scalar) -> list[Tensor]:
    """sqrt of the corrected second moment after a step along ``g``; new tensors."""
    root = _over(torch._foreach_lerp(torch._foreach_mul(g, g), exp_avg_sq, beta), correction)
    torch._foreach_sqrt_(root)
    return root


def _times(values: Tensors, factor: Scalar) -> list[Tensor]:
    return list(torch._foreach_mul(values, _fitting(factor, values)))


def _over(values: Tensors, divisor: Scalar) -> list[Tensor]:
    return list(torch._foreach_div(values, _fitting(divisor, values)))


def _fitting(scalar: Scalar, values: Tensors) -> Scalar:
    # A scalar of another type than the tensors' would cost a launch for each of them.
    return scalar.to(values[0].dtype) if isinstance(scalar, Tensor) else scalar


def _values(params: Params) -> list[Tensor]:
    return list(params.values())


def _named(names: Iterable[str], values: Iterable[Tensor]) -> Params:
    return dict(zip(names, values, strict=True))
