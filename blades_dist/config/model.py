"""The encoder."""

from pathlib import Path
from typing import Literal

from pydantic import Field, model_validator

from blades_dist.settings import Config


class ImageTowerConfig(Config):
    preset: Literal["resnet50", "resnet_small", "resnet_tiny"] = "resnet50"
    pretrained: str | None = Field(None, description="Hugging Face name or folder of a ResNet; None: from scratch")
    weights: Path | None = Field(
        None, description="state dict in torchvision's layout (.safetensors, or .pt/.pth without code) for the preset"
    )
    highpass: float = Field(
        0.0, ge=0, description="gain of a fixed high-pass residual as three more input channels; 0: none"
    )
    mean: tuple[float, float, float] = (0.48145466, 0.4578275, 0.40821073)
    std: tuple[float, float, float] = (0.26862954, 0.26130258, 0.27577711)

    @model_validator(mode="after")
    def _channels(self) -> "ImageTowerConfig":
        if self.pretrained is not None and self.weights is not None:
            raise ValueError("weights: pretrained names other weights; set one of the two")
        if self.highpass and (self.pretrained is not None or self.weights is not None):
            raise ValueError("highpass: a pretrained ResNet takes three channels; set it to 0")
        return self


class TextTowerConfig(Config):
    kind: Literal["gpt2", "clip"] = "gpt2"
    pretrained: str | None = Field(
        None, description="Hugging Face name or folder of a GPT-2 or CLIP text tower; None: from scratch"
    )
    layers: int = Field(12, ge=1)
    width: int = Field(512, ge=8)
    heads: int = Field(8, ge=1)

    @model_validator(mode="after")
    def _heads(self) -> "TextTowerConfig":
        if self.width % self.heads:
            raise ValueError(f"heads: {self.heads} does not divide width {self.width}")
        return self


class ModelConfig(Config):
    image: ImageTowerConfig = ImageTowerConfig()
    text: TextTowerConfig = TextTowerConfig()
    embed_dim: int = Field(768, ge=2)
    logit_scale: float = Field(1 / 0.07, gt=0, le=100, description="start value of exp(logit_scale)")
    learn_logit_scale: bool = True
    batchnorm: Literal["sync", "local", "frozen"] = "sync"
    activation_checkpointing: bool = Field(False, description="recompute activations in the backward to save memory")
    compile: bool = Field(False, description="torch.compile of both towers; forward-mode passes stay eager")

    @model_validator(mode="after")
    def _compiled(self) -> "ModelConfig":
        if self.compile and self.activation_checkpointing:
            raise ValueError(
                "compile: the compiler itself chooses what to recompute; not with activation_checkpointing"
            )
        return self
