"""Counting the operations that a piece of code hands to a device."""

from collections import Counter
from typing import Any

from torch.utils._python_dispatch import TorchDispatchMode

_NO_WORK = (
    *("empty", "new_empty", "detach", "unsafe_view", "local_scalar_dense"),
    *("has_same_storage_numel", "is_same_size", "efficientzerotensor"),
)


class OperationCounter(TorchDispatchMode):
    """Inside, ``counts`` (a count by name) and ``total`` of the operations that would compute or copy on a GPU.

    Views, allocations and autograd's own bookkeeping are no operations. One that takes lists of tensors counts as one,
    as on a GPU, where it takes one launch for some hundred tensors. A count on the ``meta`` device says what CUDA
    would be given, but for what depends on the device.
    """

    def __init__(self) -> None:
        super().__init__()
        self.counts: Counter[str] = Counter()

    @property
    def total(self) -> int:
        return self.counts.total()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if _works(func):
            self.counts[func.name().removeprefix("aten::")] += 1
        return func(*args, **(kwargs or {}))


def _works(func: Any) -> bool:
    name = func.name().split("::")[1].split(".")[0].strip("_")
    if name.startswith(_NO_WORK):
        return False
    returned = [value.alias_info for value in func._schema.returns]
    return not returned or any(alias is None or alias.is_write for alias in returned)
