"""Checkpoints in the layouts that others publish, with random numbers, and what their code computes from them.

Written from the layouts alone: torch.nn and torch.nn.functional, no transformers and nothing of ``blades_dist``.
"""

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

State = dict[str, Tensor]

CLIP_MEAN, CLIP_STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
BLOCKS = (3, 4, 6, 3)
WORDS, POSITIONS, WIDTH, JOINT = 520, 77, 64, 96


def resnet50(outputs: int, seed: int = 0) -> State:
    """A torchvision ResNet-50's state dict: all statistics and scales differ, activations stay of order one."""
    random = torch.Generator().manual_seed(seed)

    def uniform(*shape: int, low: float, high: float) -> Tensor:
        return torch.rand(*shape, generator=random) * (high - low) + low

    def conv(into: int, out: int, side: int) -> Tensor:
        return torch.randn(out, into, side, side, generator=random) * (2 / (into * side * side)) ** 0.5

    def norm(name: str, width: int, gain: float = 1.0) -> State:
        return {
            f"{name}.weight": gain * uniform(width, low=0.5, high=1.5),
            f"{name}.bias": uniform(width, low=-0.3, high=0.3),
            f"{name}.running_mean": uniform(width, low=-0.3, high=0.3),
            f"{name}.running_var": uniform(width, low=0.5, high=1.5),
            f"{name}.num_batches_tracked": torch.tensor(7),
        }

    state = {"conv1.weight": conv(3, 64, 7), **norm("bn1", 64)}
    into = 64
    for stage, blocks in enumerate(BLOCKS, 1):
        width = 64 * 2 ** (stage - 1)
        for block in range(blocks):
            name = f"layer{stage}.{block}"
            for place, (a, b, side) in enumerate([(into, width, 1), (width, width, 3), (width, 4 * width, 1)], 1):
                state[f"{name}.conv{place}.weight"] = conv(a, b, side)
                state |= norm(f"{name}.bn{place}", b, 0.3 if place == 3 else 1.0)
            if block == 0:
                state[f"{name}.downsample.0.weight"] = conv(into, 4 * width, 1)
                state |= norm(f"{name}.downsample.1", 4 * width)
            into = 4 * width
    state["fc.weight"] = torch.randn(outputs, 2048, generator=random) / 2048**0.5
    state["fc.bias"] = torch.randn(outputs, generator=random) * 0.1
    return state


def resnet50_forward(state: State, images: Tensor) -> Tensor:
    """(B, 3, S, S) prepared images to (B, outputs), in evaluation mode."""

    def norm(x: Tensor, name: str) -> Tensor:
        running = (state[f"{name}.running_mean"], state[f"{name}.running_var"])
        return F.batch_norm(x, *running, state[f"{name}.weight"], state[f"{name}.bias"], eps=1e-5)

    x = F.relu(norm(F.conv2d(images, state["conv1.weight"], stride=2, padding=3), "bn1"))
    x = F.max_pool2d(x, 3, stride=2, padding=1)
    for stage, blocks in enumerate(BLOCKS, 1):
        for block in range(blocks):
            name, stride = f"layer{stage}.{block}", 2 if stage > 1 and block == 0 else 1
            y = F.relu(norm(F.conv2d(x, state[f"{name}.conv1.weight"]), f"{name}.bn1"))
            y = F.relu(norm(F.conv2d(y, state[f"{name}.conv2.weight"], stride=stride, padding=1), f"{name}.bn2"))
            y = norm(F.conv2d(y, state[f"{name}.conv3.weight"]), f"{name}.bn3")
            if block == 0:
                x = norm(F.conv2d(x, state[f"{name}.downsample.0.weight"], stride=stride), f"{name}.downsample.1")
            x = F.relu(x + y)
    return F.linear(x.mean((2, 3)), state["fc.weight"], state["fc.bias"])


class Block(nn.Module):
    """A residual attention block as OpenAI's CLIP has it; parameter names are the layout's."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.attn = nn.MultiheadAttention(width, heads)
        self.ln_1, self.ln_2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.mlp = nn.ModuleDict({"c_fc": nn.Linear(width, 4 * width), "c_proj": nn.Linear(4 * width, width)})

    def forward(self, x: Tensor, mask: Tensor | None) -> Tensor:
        normed = self.ln_1(x)
        x = x + self.attn(normed, normed, normed, need_weights=False, attn_mask=mask)[0]
        hidden = self.mlp["c_fc"](self.ln_2(x))
        return x + self.mlp["c_proj"](hidden * torch.sigmoid(1.702 * hidden))


class TextTower(nn.Module):
    """CLIP's text side."""

    def __init__(self, words: int, positions: int, width: int, layers: int, out: int) -> None:
        super().__init__()
        self.token_embedding = nn.Embedding(words, width)
        self.positional_embedding = nn.Parameter(torch.randn(positions, width) * 0.1)
        self.transformer = nn.ModuleDict({"resblocks": nn.ModuleList(Block(width, width // 64) for _ in range(layers))})
        self.ln_final = nn.LayerNorm(width)
        self.text_projection = nn.Parameter(torch.randn(width, out) * width**-0.5)

    @torch.no_grad()
    def forward(self, tokens: Tensor) -> Tensor:
        """(C, positions) ids, zeros after the end, to (C, out)."""
        length = tokens.shape[1]
        mask = torch.full((length, length), -torch.inf).triu(1)
        x = (self.token_embedding(tokens) + self.positional_embedding[:length]).transpose(0, 1)
        for block in self.transformer["resblocks"]:
            x = block(x, mask)
        x = self.ln_final(x.transpose(0, 1))
        return x[torch.arange(len(x)), tokens.argmax(-1)] @ self.text_projection


class VisionTower(nn.Module):
    """CLIP's vision transformer."""

    def __init__(self, side: int, patch: int, width: int, layers: int, out: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, width, patch, patch, bias=False)
        self.class_embedding = nn.Parameter(torch.randn(width) * 0.1)
        self.positional_embedding = nn.Parameter(torch.randn((side // patch) ** 2 + 1, width) * 0.1)
        self.ln_pre, self.ln_post = nn.LayerNorm(width), nn.LayerNorm(width)
        self.transformer = nn.ModuleDict({"resblocks": nn.ModuleList(Block(width, width // 64) for _ in range(layers))})
        self.proj = nn.Parameter(torch.randn(width, out) * width**-0.5)

    @torch.no_grad()
    def forward(self, images: Tensor) -> Tensor:
        """(B, 3, S, S) prepared images to (B, out)."""
        x = self.conv1(images).flatten(2).transpose(1, 2)
        x = torch.cat([self.class_embedding.expand(len(x), 1, -1), x], 1) + self.positional_embedding
        x = self.ln_pre(x).transpose(0, 1)
        for block in self.transformer["resblocks"]:
            x = block(x, None)
        return self.ln_post(x[0]) @ self.proj


def scramble(module: nn.Module, seed: int) -> None:
    """Every bias and norm scale becomes different, so that a swapped pair shows."""
    random = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            if parameter.ndim == 1:
                parameter.add_(0.2 * torch.randn(parameter.shape, generator=random))


def normalised(images: Tensor, mean: tuple[float, ...] = CLIP_MEAN, std: tuple[float, ...] = CLIP_STD) -> Tensor:
    return (images - torch.tensor(mean).view(3, 1, 1)) / torch.tensor(std).view(3, 1, 1)


def released_images(crops: list[np.ndarray], antialias: bool = True) -> Tensor:
    """ToTensor, Resize((224, 224)) of the tensor, CLIP's mean and deviation."""
    rows = []
    for crop in crops:
        tensor = torch.tensor(crop).permute(2, 0, 1)[None].float() / 255
        rows.append(F.interpolate(tensor, size=(224, 224), mode="bilinear", align_corners=False, antialias=antialias))
    return normalised(torch.cat(rows))


def crops_of(*sides: int) -> list[np.ndarray]:
    """Smooth random pictures with noise, (side, side, 3) uint8 each."""
    random = np.random.default_rng(3)
    found = []
    for side in sides:
        coarse = torch.tensor(random.normal(size=(1, 3, 5, 5)))
        smooth = F.interpolate(coarse, (side, side), mode="bicubic")[0].permute(1, 2, 0).numpy()
        found.append(np.clip(128 + 60 * smooth + random.normal(0, 12, smooth.shape), 0, 255).astype(np.uint8))
    return found


def text_tower() -> TextTower:
    """A small CLIP text tower with random numbers, the same each time."""
    torch.manual_seed(0)
    tower = TextTower(WORDS, POSITIONS, WIDTH, layers=2, out=JOINT)
    scramble(tower, 1)
    return tower


def released_state() -> State:
    """What ``CLIP_EXIF_Net.state_dict()`` holds."""
    random = torch.Generator().manual_seed(2)
    text = {
        **text_tower().state_dict(),
        "text_fc.weight": torch.randn(768, JOINT, generator=random) * JOINT**-0.5,
        "text_fc.bias": torch.randn(768, generator=random) * 0.1,
        "logit_scale": torch.tensor(2.7),
    }
    visual = {f"visual.{name}": value for name, value in resnet50(768).items()}
    return {f"model.{name}": value for name, value in {**visual, **text}.items()}


def perceptron() -> State:
    """The layers of the released ``BC_MLP``."""
    random = torch.Generator().manual_seed(5)
    return {
        "fc1.weight": torch.randn(1536, 768, generator=random),
        "fc1.bias": torch.randn(1536, generator=random) * 0.3,
        "fc2.weight": torch.randn(2, 1536, generator=random) * 1536**-0.5,
        "fc2.bias": torch.randn(2, generator=random),
    }


def binary_state(oc: State) -> State:
    """What ``BC.pth`` holds, of the state of an ``OC.pth``."""
    return {f"model.{name}": value for name, value in oc.items()} | perceptron()
