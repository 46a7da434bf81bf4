"""A module as a pure function of its trainable parameters."""

from typing import Any

from torch import Tensor, nn
from torch.func import functional_call

from blades_dist.bilevel.lookahead import Params


class Functional:
    """Calls ``module`` at other parameters, which are given by name; buffers are the module's own.

    ``params`` are the trainable ones as they are, found once: ``named_parameters`` walks every module at each call.
    """

    def __init__(self, module: nn.Module) -> None:
        self.module = module
        self.params: Params = {name: value for name, value in module.named_parameters() if value.requires_grad}
        everywhere = sum(1 for _ in module.named_parameters(remove_duplicate=False))
        # Looking for parameters that are one and the same takes half of functional_call's time.
        self._tied = everywhere > sum(1 for _ in module.named_parameters())

    def __call__(self, params: Params, *inputs: Any) -> Tensor:
        result: Tensor = functional_call(self.module, params, inputs, tie_weights=self._tied)
        return result
