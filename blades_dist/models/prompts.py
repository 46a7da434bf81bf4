"""All prompts as one tree of shared prefixes: what causal attention computes for them, computed once.

With causal attention a token's hidden state depends on the tokens before it only, so prompts that begin alike have
equal states there. A transformer over the tree's nodes as one sequence, where a node sees its ancestors and itself
and its position is its depth, gives every prompt the states it would have alone (as in tree attention for
speculative decoding: Miao et al., SpecInfer, 2024).
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers
from torch import Tensor

Encode = Callable[[str], list[int]]


@dataclass(frozen=True)
class PromptTree:
    """T nodes for C prompts, parents before children.

    ``tokens`` (T,); ``depth`` (T,), 0 at a prompt's first token; ``visible`` (T, T), true where the row's node may
    look at the column's; ``last`` (C,), the node each prompt ends at.
    """

    tokens: Tensor
    depth: Tensor
    visible: Tensor
    last: Tensor


def prompt_tree(prompts: Sequence[Sequence[int]]) -> PromptTree:
    """The tree of token sequences; equal ones end at the same node.

    Raises:
        ValueError: a prompt without tokens.
    """
    if not all(prompts):
        raise ValueError(f"prompt {[len(prompt) for prompt in prompts].index(0)} has no tokens")
    nodes: dict[tuple[int, ...], int] = {}
    for prompt in prompts:
        for end in range(1, len(prompt) + 1):
            nodes.setdefault(tuple(prompt[:end]), len(nodes))
    visible = torch.zeros(len(nodes), len(nodes), dtype=torch.bool)
    for path, node in nodes.items():
        visible[node, [nodes[path[:end]] for end in range(1, len(path) + 1)]] = True
    return PromptTree(
        tokens=torch.tensor([path[-1] for path in nodes]),
        depth=torch.tensor([len(path) - 1 for path in nodes]),
        visible=visible,
        last=torch.tensor([nodes[tuple(prompt)] for prompt in prompts]),
    )


def padded(prompts: Sequence[Sequence[int]]) -> tuple[Tensor, Tensor]:
    """(C, L) token ids with zeros after each prompt's end, and (C,) the place of its last token."""
    tokens = torch.zeros(len(prompts), max(map(len, prompts)), dtype=torch.long)
    for row, values in enumerate(prompts):
        tokens[row, : len(values)] = torch.tensor(values)
    return tokens, torch.tensor([len(values) - 1 for values in prompts])


def word_tokenizer(prompts: Sequence[str]) -> tuple[Encode, int]:
    """A tokenizer whose vocabulary is the words of ``prompts`` (case ignored), and the size of that vocabulary."""
    splitter = pre_tokenizers.Whitespace()
    words = sorted({word for prompt in prompts for word, _ in splitter.pre_tokenize_str(prompt.lower())})
    tokenizer = Tokenizer(models.WordLevel({"<unk>": 0} | {word: i + 1 for i, word in enumerate(words)}, "<unk>"))
    tokenizer.pre_tokenizer = splitter
    tokenizer.normalizer = normalizers.Lowercase()
    return lambda text: tokenizer.encode(text).ids, tokenizer.get_vocab_size()
