"""Text towers: the tree against each prompt padded, pretrained folders, and forward mode."""

from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from torch import Tensor
from torch.func import functional_call, jvp
from transformers import CLIPModel, CLIPTextConfig, CLIPTextModel, GPT2Config, GPT2Model, PreTrainedTokenizerFast

from blades_dist.config import TextTowerConfig
from blades_dist.models.text import TextTower, build_text_tower
from blades_dist.tasks import task_set

PROMPTS = task_set().prompts
WIDTH = 32


def save_folder(kind: str, folder: Path, positions: int = 77) -> Path:
    """A tiny pretrained model with a tokenizer over the prompts' words; CLIP's wraps them in start and end tokens."""
    words = sorted({word for prompt in PROMPTS for word in pre_tokenizers.Whitespace().pre_tokenize_str(prompt)})
    names = ["<unk>", "<pad>", "<start>", "<end>", *sorted({word for word, _ in words})]
    tokenizer = Tokenizer(models.WordLevel({name: i for i, name in enumerate(names)}, "<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    if kind == "clip":
        ends = [("<start>", 2), ("<end>", 3)]
        tokenizer.post_processor = processors.TemplateProcessing(single="<start> $A <end>", special_tokens=ends)
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>").save_pretrained(folder)
    torch.manual_seed(1)
    if kind == "clip":
        sizes = {"hidden_size": WIDTH, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
        clip = CLIPTextConfig(
            vocab_size=len(names), max_position_embeddings=positions, attention_dropout=0.1, eos_token_id=3, **sizes
        )
        CLIPTextModel(clip).save_pretrained(folder)
    else:
        gpt2 = GPT2Config(vocab_size=len(names), n_positions=positions, n_embd=WIDTH, n_layer=2, n_head=4)
        GPT2Model(gpt2).save_pretrained(folder)
    return folder


@pytest.fixture(params=["gpt2", "clip", "gpt2 folder", "clip folder"])
def tower(request: pytest.FixtureRequest, tmp_path: Path) -> TextTower:
    kind, *folder = request.param.split()
    pretrained = str(save_folder(kind, tmp_path)) if folder else None
    torch.manual_seed(0)
    config = TextTowerConfig(kind=kind, layers=2, width=WIDTH, heads=4, pretrained=pretrained)
    return build_text_tower(config, PROMPTS, 16).double().train()


def one_by_one(tower: TextTower) -> Tensor:
    """Every prompt padded, through transformers' own causal forward."""
    tower.backbone.set_attn_implementation("sdpa")
    tower.backbone.eos_token_id = 0  # CLIP's forward looks for it; what it finds is not used here
    hidden = tower.backbone(input_ids=tower.tokens).last_hidden_state
    tower.backbone.set_attn_implementation("blades_tree")
    return tower.project(hidden[torch.arange(len(tower.last)), tower.last])


def test_the_tree_gives_what_padded_prompts_give(tower: TextTower) -> None:
    assert len(tower.nodes) < tower.tokens.numel() / 3
    found, expected = tower(), one_by_one(tower)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)
    weights = torch.rand(found.shape, dtype=found.dtype)
    params = list(tower.parameters())
    gradients = [torch.autograd.grad((value * weights).sum(), params) for value in (found, expected)]
    for first, second in zip(*gradients, strict=True):
        torch.testing.assert_close(first, second, rtol=0, atol=1e-11)


def test_forward_mode_agrees_with_differences(tower: TextTower) -> None:
    params = {name: value.detach() for name, value in tower.named_parameters()}
    direction = {name: 0.1 * torch.randn_like(value) for name, value in params.items()}

    def forward(params: dict[str, Tensor]) -> Tensor:
        return functional_call(tower, params, ())

    def moved(step: float) -> Tensor:
        return forward({name: value + step * direction[name] for name, value in params.items()})

    with torch.no_grad():
        tangent = jvp(forward, (params,), (direction,))[1]
        differences = (moved(1e-6) - moved(-1e-6)) / 2e-6
    torch.testing.assert_close(tangent, differences, rtol=1e-5, atol=1e-6)


def test_bf16_forward_backward_and_forward_mode_run(tower: TextTower) -> None:
    tower.float()
    params = {name: value.detach() for name, value in tower.named_parameters()}
    with torch.autocast("cpu", torch.bfloat16):
        tower().float().sum().backward()
        with torch.no_grad():
            value, tangent = jvp(lambda p: functional_call(tower, p, ()), (params,), (params,))
    assert value.isfinite().all() and tangent.isfinite().all()
    assert all(each.grad is None or each.grad.isfinite().all() for each in tower.parameters())


def test_clip_is_read_at_the_end_token_it_was_trained_with(tmp_path: Path) -> None:
    save_folder("clip", tmp_path)
    tower = build_text_tower(TextTowerConfig(kind="clip", pretrained=str(tmp_path)), PROMPTS, 16).eval()
    with torch.no_grad():
        pooled = CLIPTextModel.from_pretrained(tmp_path).eval()(input_ids=tower.tokens).pooler_output
        torch.testing.assert_close(tower(), tower.project(pooled), rtol=0, atol=1e-5)


def test_the_text_half_of_a_whole_clip_loads(tmp_path: Path) -> None:
    save_folder("clip", tmp_path)
    whole = CLIPTextModel.from_pretrained(tmp_path).config.to_dict()
    vision = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1}
    clip = CLIPModel(CLIPModel.config_class(text_config=whole, vision_config=vision))
    clip.save_pretrained(tmp_path)
    tower = build_text_tower(TextTowerConfig(kind="clip", pretrained=str(tmp_path)), PROMPTS, 16)
    expected = clip.text_model.state_dict()
    found = tower.backbone.state_dict()
    assert found.keys() == expected.keys() and all(torch.equal(found[name], expected[name]) for name in found)


def test_folders_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    clip, gpt2 = str(save_folder("clip", tmp_path / "clip")), str(save_folder("gpt2", tmp_path / "gpt2"))
    with pytest.raises(ValueError, match="type 'clip_text_model'; expected gpt2"):
        build_text_tower(TextTowerConfig(kind="gpt2", pretrained=clip), PROMPTS, 16)
    with pytest.raises(ValueError, match="type 'gpt2'; expected clip_text_model or clip"):
        build_text_tower(TextTowerConfig(kind="clip", pretrained=gpt2), PROMPTS, 16)
    short = str(save_folder("gpt2", tmp_path / "short", positions=8))
    with pytest.raises(ValueError, match=r"a prompt has \d+ tokens, the model has 8 positions"):
        build_text_tower(TextTowerConfig(pretrained=short), PROMPTS, 16)
