"""CLIP towers in OpenAI's state-dict layout to transformers' models: renaming, and one joint matrix taken apart.

``transformer.resblocks.3.attn.in_proj_weight`` holds query, key and value of a layer on top of each other;
``text_projection`` and ``visual.proj`` multiply from the right. Heads are 64 wide in every published CLIP.
"""

import re
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor
from transformers import CLIPTextConfig, CLIPTextModel, CLIPVisionConfig, CLIPVisionModelWithProjection

from blades_dist.models.convert import State, some_names
from blades_dist.models.prompts import padded

HEAD_WIDTH = 64

_TEXT = {
    "token_embedding.weight": "embeddings.token_embedding.weight",
    "positional_embedding": "embeddings.position_embedding.weight",
    "ln_final.weight": "final_layer_norm.weight",
    "ln_final.bias": "final_layer_norm.bias",
}
_IMAGE = {
    "conv1.weight": "vision_model.embeddings.patch_embedding.weight",
    "class_embedding": "vision_model.embeddings.class_embedding",
    "positional_embedding": "vision_model.embeddings.position_embedding.weight",
    "ln_pre.weight": "vision_model.pre_layrnorm.weight",
    "ln_pre.bias": "vision_model.pre_layrnorm.bias",
    "ln_post.weight": "vision_model.post_layernorm.weight",
    "ln_post.bias": "vision_model.post_layernorm.bias",
}
_BLOCK = {
    "ln_1": "layer_norm1",
    "attn.out_proj": "self_attn.out_proj",
    "ln_2": "layer_norm2",
    "mlp.c_fc": "mlp.fc1",
    "mlp.c_proj": "mlp.fc2",
}


def prompt_features(state: State, prompts: Sequence[Sequence[int]]) -> Tensor:
    """(C, E) features of token sequences, not normalised: the transformer, ``ln_final``, the state at the token of
    the highest id (CLIP's end of text), ``text_projection``.

    ``state`` holds the text side only: what ``is_text`` names.

    Raises:
        ValueError: names missing or too many, shapes that do not fit, or tokens that this tower does not have.
    """
    _check("CLIP text tower", state, _TEXT, ("text_projection",))
    words, width = state["token_embedding.weight"].shape
    positions = len(state["positional_embedding"])
    highest, longest = max(max(ids) for ids in prompts), max(map(len, prompts))
    if highest >= words or longest > positions:
        raise ValueError(
            f"the tokenizer gives ids up to {highest} and {longest} tokens a prompt; the text tower has {words} and "
            f"{positions}: it is not this CLIP's tokenizer"
        )
    config = CLIPTextConfig(
        vocab_size=words,
        max_position_embeddings=positions,
        hidden_size=width,
        intermediate_size=4 * width,
        num_hidden_layers=_layers(state),
        num_attention_heads=max(1, width // HEAD_WIDTH),
        hidden_act="quick_gelu",
        eos_token_id=2,  # by transformers' convention: the highest id of a sequence ends it
    )
    model = CLIPTextModel(config).eval()
    _fill(model, _renamed(state, _TEXT, "encoder.layers."))
    tokens, _ = padded(prompts)
    ends = tokens.argmax(-1)
    with torch.no_grad():
        hidden = model(input_ids=tokens).last_hidden_state[torch.arange(len(tokens)), ends]
    return hidden @ state["text_projection"]


def is_text(name: str) -> bool:
    """Whether a name of OpenAI's layout belongs to the text tower."""
    return name in _TEXT or name == "text_projection" or name.startswith("transformer.resblocks.")


def image_tower(state: State) -> CLIPVisionModelWithProjection:
    """The vision transformer of ``visual.`` (prefix removed), in evaluation mode.

    Raises:
        ValueError: names missing or too many, or shapes that do not fit.
    """
    _check("CLIP vision transformer", state, _IMAGE, ("proj",))
    width, channels, patch, _ = state["conv1.weight"].shape
    grid = round((len(state["positional_embedding"]) - 1) ** 0.5)
    config = CLIPVisionConfig(
        hidden_size=width,
        intermediate_size=4 * width,
        projection_dim=state["proj"].shape[1],
        num_hidden_layers=_layers(state),
        num_attention_heads=max(1, width // HEAD_WIDTH),
        num_channels=channels,
        image_size=grid * patch,
        patch_size=patch,
        hidden_act="quick_gelu",
    )
    model = CLIPVisionModelWithProjection(config).eval()
    renamed = _renamed(state, _IMAGE, "vision_model.encoder.layers.")
    _fill(model, renamed | {"visual_projection.weight": state["proj"].T.contiguous()})
    return model


def _layers(state: State) -> int:
    found = [re.match(r"transformer\.resblocks\.(\d+)\.", name) for name in state]
    return max((int(match[1]) + 1 for match in found if match), default=1)


def _check(what: str, state: State, single: Mapping[str, str], projection: Sequence[str]) -> None:
    expected = {*single, *projection}
    for layer in range(_layers(state)):
        parts = [*(f"{part}.{kind}" for part in _BLOCK for kind in ("weight", "bias"))]
        parts += ["attn.in_proj_weight", "attn.in_proj_bias"]
        expected |= {f"transformer.resblocks.{layer}.{part}" for part in parts}
    found = set(state)
    for word, names in (("missing", sorted(expected - found)), ("unexpected", sorted(found - expected))):
        if names:
            raise ValueError(f"not a {what} in OpenAI's layout: {word} {some_names(names)}")


def _renamed(state: State, single: Mapping[str, str], blocks: str) -> State:
    renamed = {ours: state[theirs] for theirs, ours in single.items()}
    for name, value in state.items():
        match = re.fullmatch(r"transformer\.resblocks\.(\d+)\.(.+)", name)
        if not match:
            continue
        layer, part = f"{blocks}{match[1]}.", match[2]
        if part.startswith("attn.in_proj_"):
            kind = part.removeprefix("attn.in_proj_")
            for own, rows in zip("qkv", value.chunk(3), strict=True):
                renamed[f"{layer}self_attn.{own}_proj.{kind}"] = rows
        else:
            stem, kind = part.rsplit(".", 1)
            renamed[f"{layer}{_BLOCK[stem]}.{kind}"] = value
    return renamed


def _fill(model: torch.nn.Module, state: State) -> None:
    try:
        model.load_state_dict({name: value.float() for name, value in state.items()})
    except RuntimeError as error:
        raise ValueError(f"shapes of a CLIP tower do not fit each other: {error}") from None
