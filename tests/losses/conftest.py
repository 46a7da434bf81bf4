"""Without a GPU the kernel's tests run it in Triton's interpreter, which is chosen when the kernel is imported."""

import os

import torch

if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")
