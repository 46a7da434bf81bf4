"""The virtual inner step that the outer objective is evaluated after."""

from torch import Tensor

Params = dict[str, Tensor]


def sgd_lookahead(params: Params, gradient: Params, lr: float, weight_decay: float) -> Params:
    """theta' = theta - lr (gradient + weight_decay theta), DESIGN section 4; new tensors, nothing in place."""
    return {name: (value - lr * (gradient[name] + weight_decay * value)).detach() for name, value in params.items()}
