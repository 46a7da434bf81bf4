"""Text tower: a causal transformer (GPT-2 or CLIP's) over the task prompts, read at each prompt's last token."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from transformers import (
    AttentionInterface,
    AutoTokenizer,
    CLIPTextConfig,
    CLIPTextModel,
    GPT2Config,
    GPT2Model,
    PreTrainedModel,
)

from blades_dist.config import TextTowerConfig
from blades_dist.models.pretrained import load_pretrained
from blades_dist.models.prompts import padded, prompt_tree, word_tokenizer
from blades_dist.models.recompute import recompute
from blades_dist.models.text_layers import tree_attention

ATTENTION = "blades_tree"


AttentionInterface.register(ATTENTION, tree_attention)


@dataclass(frozen=True)
class _Parts:
    words: nn.Embedding
    places: nn.Embedding
    blocks: nn.ModuleList
    norm: nn.LayerNorm


def _parts(backbone: PreTrainedModel) -> _Parts:
    # Not the backbone's own forward: CLIP's refuses sequences longer than its positions, which the tree may be.
    if isinstance(backbone, GPT2Model):
        return _Parts(backbone.wte, backbone.wpe, backbone.h, backbone.ln_f)
    embeddings = backbone.embeddings
    return _Parts(
        embeddings.token_embedding, embeddings.position_embedding, backbone.encoder.layers, backbone.final_layer_norm
    )


class TextTower(nn.Module):
    """The run's fixed prompts to embeddings.

    The prompts are part of the module: buffers ``tokens`` (C, L), padded on the right, and ``last`` (C,) say what
    they are and are saved. What is computed is their tree (``nodes`` tokens, see ``prompts``), which is derived from
    them and follows a loaded state.
    """

    tokens: Tensor
    last: Tensor
    nodes: Tensor
    depth: Tensor
    mask: Tensor
    ends: Tensor
    recompute = False
    narrow: torch.dtype | None = None  # what products compute in, see ``precision``

    def __init__(self, backbone: PreTrainedModel, prompts: Sequence[Sequence[int]], embed_dim: int) -> None:
        super().__init__()
        self.backbone = backbone
        self.project = nn.Linear(backbone.config.hidden_size, embed_dim)
        tokens, last = padded(prompts)
        self.register_buffer("tokens", tokens)
        self.register_buffer("last", last)
        self._grow()
        self.register_load_state_dict_post_hook(TextTower._grow)

    def forward(self) -> Tensor:
        """(C, D) embeddings of the prompts, not normalised."""
        parts = _parts(self.backbone)
        hidden = (parts.words(self.nodes) + parts.places(self.depth)).unsqueeze(0)
        mask = self.mask.to(self.narrow or hidden.dtype)
        for block in parts.blocks:
            hidden = recompute(block, hidden, None, mask) if self.recompute else block(hidden, attention_mask=mask)
        return self.project(parts.norm(hidden)[0, self.ends])

    def _grow(self, *_: object) -> None:
        ids = [row[: end + 1] for row, end in zip(self.tokens.tolist(), self.last.tolist(), strict=True)]
        tree = prompt_tree(ids)
        mask = torch.zeros(tree.visible.shape, dtype=self.project.weight.dtype).masked_fill(~tree.visible, -torch.inf)
        values = {"nodes": tree.tokens, "depth": tree.depth, "mask": mask, "ends": tree.last}
        for name, value in values.items():
            self.register_buffer(name, value.to(self.tokens.device), persistent=False)


def build_text_tower(config: TextTowerConfig, prompts: tuple[str, ...], embed_dim: int) -> TextTower:
    """A tower over ``prompts``, from scratch (torch's global seed) or from a Hugging Face GPT-2 or CLIP.

    From scratch the vocabulary is the words of the prompts: nothing else is ever read, and no download is needed.
    A pretrained CLIP is read at the end-of-text token that its tokenizer appends.

    Raises:
        OSError: ``config.pretrained`` names no model that can be read.
        ValueError: it is no model of ``config.kind``, or a prompt has more tokens than it has positions.
    """
    if config.pretrained is None:
        encode, words = word_tokenizer(prompts)
        ids = [encode(prompt) for prompt in prompts]
        return TextTower(_from_scratch(config, words, max(map(len, ids))), ids, embed_dim)
    if config.kind == "gpt2":
        dropout = {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}
        backbone = load_pretrained(GPT2Model, ("gpt2",), config.pretrained, attn_implementation=ATTENTION, **dropout)
    else:
        backbone = load_pretrained(
            CLIPTextModel,
            ("clip_text_model", "clip"),
            config.pretrained,
            attn_implementation=ATTENTION,
            attention_dropout=0.0,
        )
    tokenizer = AutoTokenizer.from_pretrained(config.pretrained)
    ids = [tokenizer(prompt)["input_ids"] for prompt in prompts]
    longest, positions = max(map(len, ids)), backbone.config.max_position_embeddings
    if longest > positions:
        raise ValueError(f"{config.pretrained}: a prompt has {longest} tokens, the model has {positions} positions")
    return TextTower(backbone, ids, embed_dim)


def _from_scratch(config: TextTowerConfig, words: int, length: int) -> PreTrainedModel:
    if config.kind == "clip":
        clip = CLIPTextConfig(
            vocab_size=words,
            max_position_embeddings=length,
            hidden_size=config.width,
            intermediate_size=4 * config.width,
            num_hidden_layers=config.layers,
            num_attention_heads=config.heads,
            bos_token_id=None,
            eos_token_id=None,
            pad_token_id=None,
            attn_implementation=ATTENTION,
        )
        return CLIPTextModel(clip)
    gpt2 = GPT2Config(
        vocab_size=words,
        n_positions=length,
        n_embd=config.width,
        n_layer=config.layers,
        n_head=config.heads,
        bos_token_id=None,
        eos_token_id=None,
        resid_pdrop=0.0,
        embd_pdrop=0.0,
        attn_pdrop=0.0,
        attn_implementation=ATTENTION,
    )
    return GPT2Model(gpt2)
