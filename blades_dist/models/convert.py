"""ResNet weights in torchvision's layout, to transformers' names and back. torchvision itself is not needed.

Both libraries build the same network (He et al. 2016, with the stride in the 3 x 3 convolution), so this is renaming
only: ``layer2.0.conv1`` is ``encoder.stages.1.layers.0.layer.0.convolution``, and so on.
"""

import re
from collections.abc import Sequence
from pathlib import Path
from pickle import UnpicklingError

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor
from transformers import ResNetModel

State = dict[str, Tensor]

_COUNTER = "num_batches_tracked"
_PARTS = {"conv": "convolution", "bn": "normalization"}
_STEM = re.compile(r"(conv|bn)1\.(.+)")
_LAYER = re.compile(r"layer([1-4])\.(\d+)\.(?:(conv|bn)([1-3])|downsample\.([01]))\.(.+)")
_OUR_STEM = re.compile(r"embedder\.embedder\.(convolution|normalization)\.(.+)")
_OUR_LAYER = re.compile(
    r"encoder\.stages\.(\d+)\.layers\.(\d+)\.(?:layer\.(\d+)|shortcut)\.(convolution|normalization)\.(.+)"
)


def to_transformers(state: State) -> tuple[State, State]:
    """A torchvision ResNet's state as (``ResNetModel`` state, head); the head is ``weight``, ``bias`` of fc or empty.

    Raises:
        ValueError: names that torchvision's ResNets do not have; the message lists them.
    """
    head = {name.removeprefix("fc."): value for name, value in state.items() if name in ("fc.weight", "fc.bias")}
    body = {name: _our_name(name) for name in state if not name.startswith("fc.")}
    unknown = [name for name, ours in body.items() if ours is None]
    unknown += [name for name in state if name.startswith("fc.") and name not in ("fc.weight", "fc.bias")]
    if unknown:
        raise ValueError(f"not a torchvision ResNet: unexpected {some_names(unknown)}")
    return {ours: state[name] for name, ours in body.items() if ours is not None}, head


def to_torchvision(backbone: State, head: State | None = None) -> State:
    """The inverse of ``to_transformers``.

    Raises:
        ValueError: names that ``ResNetModel`` does not have.
    """
    names = {name: _their_name(name) for name in backbone}
    unknown = [name for name, theirs in names.items() if theirs is None]
    if unknown:
        raise ValueError(f"not a transformers ResNetModel: unexpected {some_names(unknown)}")
    state = {theirs: backbone[name] for name, theirs in names.items() if theirs is not None}
    return state | {f"fc.{name}": value for name, value in (head or {}).items()}


def load_torchvision(path: Path) -> State:
    """The ResNet's state in a ``.safetensors``, ``.pt`` or ``.pth`` file, by torchvision's names.

    The tower may sit inside a larger model (``visual.``, ``module.`` ... prefixes) and the state inside a checkpoint
    (``model``, ``state_dict``); what is beside the tower is left out. Files that hold code are refused.

    Raises:
        FileNotFoundError: no such file.
        ValueError: the file is damaged or of another type, or holds no ResNet or several.
    """
    state = read_state(path)
    stems = [name for name in state if re.search(r"(^|\.)conv1\.weight$", name) and "layer" not in name]
    prefixes = [stem.removesuffix("conv1.weight") for stem in stems]
    towers = [prefix for prefix in prefixes if f"{prefix}layer1.0.conv1.weight" in state]
    if not towers:
        missing = f"{prefixes[0]}layer1.0.conv1.weight" if prefixes else "conv1.weight"
        raise ValueError(f"{path} holds no torchvision ResNet: {missing} is missing; it has {some_names(list(state))}")
    if len(towers) > 1:
        raise ValueError(f"{path} holds several ResNets, under {', '.join(map(repr, towers))}: keep one of them")
    return {name.removeprefix(towers[0]): value for name, value in state.items() if name.startswith(towers[0])}


def read_state(path: Path) -> State:
    """The tensors of a ``.safetensors``, ``.pt`` or ``.pth`` file by name, out of ``state_dict`` or ``model``.

    Raises:
        FileNotFoundError: no such file.
        ValueError: the file is damaged, of another type, holds code, or no state dict.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file")
    if path.suffix not in (".safetensors", ".pt", ".pth"):
        raise ValueError(f"{path}: expected .safetensors, .pt or .pth")
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        found = torch.load(path, map_location="cpu", weights_only=True)
    except UnpicklingError:
        raise ValueError(f"{path} holds more than tensors and plain values (or is damaged), and is not read") from None
    except (SafetensorError, RuntimeError, EOFError) as error:
        raise ValueError(f"{path} is damaged: {error}") from None
    for wrapper in ("state_dict", "model"):
        if isinstance(found, dict) and isinstance(found.get(wrapper), dict):
            found = found[wrapper]
    if not isinstance(found, dict):
        raise ValueError(f"{path} holds a {type(found).__name__}, not a state dict")
    return {str(name): value for name, value in found.items() if isinstance(value, Tensor)}


def fill(backbone: ResNetModel, state: State) -> State:
    """Copies a torchvision state into ``backbone``, and returns the head (empty if there is none).

    Raises:
        ValueError: missing or unexpected names, or another depth, width or layer type; nothing was copied.
    """
    found, head = to_transformers(state)
    expected = to_torchvision(backbone.state_dict())
    for name, value in expected.items():
        if name in state and state[name].shape != value.shape:
            raise ValueError(f"{name} is {tuple(state[name].shape)}, this tower has {tuple(value.shape)}")
    missing = [name for name in expected if name not in state and not name.endswith(_COUNTER)]
    extra = [name for name in state if name not in expected and not name.startswith("fc.")]
    if missing or extra:
        lines = [
            f"{word} {some_names(names)}" for word, names in (("missing", missing), ("unexpected", extra)) if names
        ]
        raise ValueError(f"not a ResNet of this tower's depth and layer type: {'; '.join(lines)}")
    counters = {name: value for name, value in backbone.state_dict().items() if name.endswith(_COUNTER)}
    backbone.load_state_dict(counters | found)
    return head


def _our_name(name: str) -> str | None:
    if stem := _STEM.fullmatch(name):
        return f"embedder.embedder.{_PARTS[stem[1]]}.{stem[2]}"
    if not (found := _LAYER.fullmatch(name)):
        return None
    stage, layer, kind, place, shortcut, rest = found.groups()
    inside = f"layer.{int(place) - 1}" if place else "shortcut"
    part = _PARTS[kind] if kind else list(_PARTS.values())[int(shortcut)]
    return f"encoder.stages.{int(stage) - 1}.layers.{layer}.{inside}.{part}.{rest}"


def _their_name(name: str) -> str | None:
    kinds = {ours: theirs for theirs, ours in _PARTS.items()}
    if stem := _OUR_STEM.fullmatch(name):
        return f"{kinds[stem[1]]}1.{stem[2]}"
    if not (found := _OUR_LAYER.fullmatch(name)):
        return None
    stage, layer, place, part, rest = found.groups()
    inside = f"{kinds[part]}{int(place) + 1}" if place else f"downsample.{list(kinds).index(part)}"
    return f"layer{int(stage) + 1}.{layer}.{inside}.{rest}"


def some_names(names: Sequence[str], most: int = 5) -> str:
    """The first few names, and how many more there are, for messages."""
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more
