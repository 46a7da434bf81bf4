"""Making a model's layers ours."""

from torch import nn
from transformers.activations import NewGELUActivation
from transformers.models.clip import modeling_clip
from transformers.models.gpt2 import modeling_gpt2
from transformers.models.resnet import modeling_resnet
from transformers.pytorch_utils import Conv1D

from blades_dist.models import affine, residual, text_layers

KINDS: dict[type[nn.Module], type[nn.Module]] = {
    nn.Conv2d: affine.Conv2d,
    nn.Linear: affine.Linear,
    Conv1D: affine.GPT2Linear,
    nn.LayerNorm: text_layers.LayerNorm,
    NewGELUActivation: text_layers.Gelu,
    modeling_gpt2.GPT2Attention: text_layers.GPT2Attention,
    modeling_clip.CLIPAttention: text_layers.CLIPAttention,
    modeling_resnet.ResNetConvLayer: residual.ResNetConvLayer,
    modeling_resnet.ResNetBasicLayer: residual.ResNetBasicLayer,
    modeling_resnet.ResNetBottleNeckLayer: residual.ResNetBottleNeckLayer,
}


def adapt(module: nn.Module) -> None:
    """Makes every layer of ``KINDS`` below ``module`` ours, in place; parameters and names stay."""
    for layer in module.modules():
        if type(layer) in KINDS:
            layer.__class__ = KINDS[type(layer)]  # as torch's parametrize does: the state is the same, forward is not
