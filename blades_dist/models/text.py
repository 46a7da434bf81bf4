"""Text tower: a GPT-2 over the task prompts, read at each prompt's last token."""

import torch
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers
from torch import Tensor, nn
from transformers import AutoTokenizer, GPT2Config, GPT2Model

from blades_dist.config import TextTowerConfig


class TextTower(nn.Module):
    """The run's fixed prompts to embeddings.

    The prompts are part of the module (buffers ``tokens`` (C, L) and ``last`` (C,)), padded on the right to the
    longest prompt only: with causal attention a token never sees the padding after it, so the embedding at the
    last real token equals that of any longer padding.
    """

    tokens: Tensor
    last: Tensor

    def __init__(self, backbone: GPT2Model, tokens: Tensor, last: Tensor, embed_dim: int) -> None:
        super().__init__()
        self.backbone = backbone
        self.project = nn.Linear(backbone.config.n_embd, embed_dim)
        self.register_buffer("tokens", tokens)
        self.register_buffer("last", last)

    def forward(self) -> Tensor:
        """(C, D) embeddings of the prompts, not normalised."""
        hidden = self.backbone(input_ids=self.tokens, use_cache=False, return_dict=True).last_hidden_state
        return self.project(hidden[torch.arange(len(self.last), device=hidden.device), self.last])


def build_text_tower(config: TextTowerConfig, prompts: tuple[str, ...], embed_dim: int) -> TextTower:
    """A tower over ``prompts``, from scratch (torch's global seed) or from a Hugging Face GPT-2.

    From scratch the vocabulary is the words of the prompts: nothing else is ever read, and no download is needed.

    Raises:
        OSError: ``config.pretrained`` names no model that can be read.
    """
    if config.pretrained is None:
        tokenizer = _word_tokenizer(prompts)
        ids = [tokenizer.encode(prompt).ids for prompt in prompts]
        length = max(map(len, ids))
        gpt2 = GPT2Config(
            vocab_size=tokenizer.get_vocab_size(),
            n_positions=length,
            n_embd=config.width,
            n_layer=config.layers,
            n_head=config.heads,
            bos_token_id=None,
            eos_token_id=None,
            resid_pdrop=0.0,
            embd_pdrop=0.0,
            attn_pdrop=0.0,
            # Forward-mode differentiation has no formula for the fused attention kernels.
            attn_implementation="eager",
        )
        backbone = GPT2Model(gpt2)
    else:
        backbone = GPT2Model.from_pretrained(
            config.pretrained, attn_implementation="eager", resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0
        )
        pretrained = AutoTokenizer.from_pretrained(config.pretrained)
        ids = [pretrained(prompt)["input_ids"] for prompt in prompts]
        length = max(map(len, ids))
    tokens = torch.zeros(len(ids), length, dtype=torch.long)
    for row, values in enumerate(ids):
        tokens[row, : len(values)] = torch.tensor(values)
    last = torch.tensor([len(values) - 1 for values in ids])
    return TextTower(backbone, tokens, last, embed_dim)


def _word_tokenizer(prompts: tuple[str, ...]) -> Tokenizer:
    splitter = pre_tokenizers.Whitespace()
    words = sorted({word for prompt in prompts for word, _ in splitter.pre_tokenize_str(prompt.lower())})
    tokenizer = Tokenizer(models.WordLevel({"<unk>": 0} | {word: i + 1 for i, word in enumerate(words)}, "<unk>"))
    tokenizer.pre_tokenizer = splitter
    tokenizer.normalizer = normalizers.Lowercase()
    return tokenizer
