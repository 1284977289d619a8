"""CLIP, DINOv2 and DINO with two layers of random weights, saved as their published folders are."""

from __future__ import annotations

import string
from pathlib import Path

import torch
from transformers import (
    BitImageProcessorPil,
    CLIPConfig,
    CLIPImageProcessorPil,
    CLIPModel,
    CLIPTokenizer,
    Dinov2Config,
    Dinov2Model,
    ViTConfig,
    ViTModel,
)

TINY = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}


def save_clip(folder: Path) -> CLIPModel:
    """CLIP on 32x32 pixels, texts of up to 12 tokens of one letter each."""
    letters = string.ascii_lowercase
    tokens = ["<|startoftext|>", "<|endoftext|>", *letters, *(f"{letter}</w>" for letter in letters)]
    tokenizer = CLIPTokenizer(vocab={token: index for index, token in enumerate(tokens)}, merges=[])
    torch.manual_seed(1)
    config = CLIPConfig(
        text_config={
            **TINY,
            "intermediate_size": 32,
            "vocab_size": len(tokens),
            "max_position_embeddings": 12,
            "bos_token_id": 0,
            "eos_token_id": 1,
            "pad_token_id": 1,
        },
        vision_config={**TINY, "intermediate_size": 32, "image_size": 32, "patch_size": 8},
        projection_dim=8,
    )
    model = CLIPModel(config).eval()
    size = {"height": 32, "width": 32}
    model.save_pretrained(folder)
    CLIPImageProcessorPil(size={"shortest_edge": 32}, crop_size=size).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return model


def save_dinov2(folder: Path) -> Dinov2Model:
    """DINOv2 on 28x28 pixels, processed as the published one: scaled to a bit more, then cropped."""
    torch.manual_seed(2)
    model = Dinov2Model(Dinov2Config(**TINY, image_size=28, patch_size=14)).eval()
    model.save_pretrained(folder)
    imagenet = {"image_mean": [0.485, 0.456, 0.406], "image_std": [0.229, 0.224, 0.225]}
    crop = {"height": 28, "width": 28}
    BitImageProcessorPil(size={"shortest_edge": 32}, crop_size=crop, **imagenet).save_pretrained(folder)
    return model


def save_dino(folder: Path) -> ViTModel:
    """DINO's ViT with patches of 8 pixels and positions for 224x224, but two layers."""
    torch.manual_seed(3)
    config = ViTConfig(**TINY, intermediate_size=32, image_size=224, patch_size=8, initializer_range=0.2)
    model = ViTModel(config, add_pooling_layer=False).eval()
    model.save_pretrained(folder)
    return model
