"""The joint model: seeds, and what a saved state carries."""

import torch

from tests.models.small import small_model


def test_equal_seeds_give_equal_parameters_whatever_was_drawn_before() -> None:
    first = small_model()
    torch.rand(7)
    state = torch.random.get_rng_state()
    second = small_model()
    assert torch.equal(torch.random.get_rng_state(), state), "building a model must not draw from the global generator"
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True))


def test_options_that_save_memory_or_time_change_no_names() -> None:
    plain = small_model().state_dict()
    assert list(small_model(activation_checkpointing=True).state_dict()) == list(plain)
    assert not any("_orig_mod" in name for name in plain)


def test_a_state_brings_its_prompts_along() -> None:
    model, other = small_model(), small_model()
    state = model.state_dict()
    assert {name for name in state if name in ("text.tokens", "text.last")} == {"text.tokens", "text.last"}
    state["text.tokens"], state["text.last"] = state["text.tokens"].flip(0), state["text.last"].flip(0)
    other.load_state_dict(state)
    torch.testing.assert_close(other.text(), model.text().flip(0))
