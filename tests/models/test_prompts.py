"""The tree of prompts."""

import pytest
import torch

from blades_dist.models.prompts import padded, prompt_tree, word_tokenizer
from blades_dist.tasks import task_set


def test_a_small_tree_by_hand() -> None:
    tree = prompt_tree([[5, 6, 7], [5, 6], [5, 8, 7], [5, 6, 7]])
    assert tree.tokens.tolist() == [5, 6, 7, 8, 7]
    assert tree.depth.tolist() == [0, 1, 2, 1, 2]
    assert tree.last.tolist() == [2, 1, 4, 2]
    seen = [row.nonzero().flatten().tolist() for row in tree.visible]
    assert seen == [[0], [0, 1], [0, 1, 2], [0, 3], [0, 3, 4]]


def test_every_prompt_can_be_read_back_from_the_tree() -> None:
    generator = torch.Generator().manual_seed(0)
    lengths = torch.randint(1, 9, (40,), generator=generator).tolist()
    prompts = [torch.randint(0, 3, (length,), generator=generator).tolist() for length in lengths]
    tree = prompt_tree(prompts)
    for prompt, last in zip(prompts, tree.last, strict=True):
        path = tree.visible[last].nonzero().flatten()
        assert tree.tokens[path].tolist() == prompt
        assert tree.depth[path].tolist() == list(range(len(prompt)))


def test_the_tasks_prompts_shrink_to_a_quarter() -> None:
    prompts = task_set(flash=True).prompts
    encode, words = word_tokenizer(prompts)
    ids = [encode(prompt) for prompt in prompts]
    assert len(set(map(tuple, ids))) == len(prompts), "every prompt has its own tokens"
    assert max(map(max, ids)) < words
    tokens, last = padded(ids)
    tree = prompt_tree(ids)
    assert tokens.shape[1] <= 20
    assert len(tree.tokens) < tokens.numel() / 4
    assert len(tree.last.unique()) == len(prompts) == len(last)


def test_a_prompt_without_tokens_is_refused() -> None:
    with pytest.raises(ValueError, match="prompt 1 has no tokens"):
        prompt_tree([[1], []])
