"""Small Segment Anything models of random weights, built from segment-anything's own modules, for tests of loading."""

from functools import partial

import torch
from segment_anything.modeling import ImageEncoderViT, MaskDecoder, PromptEncoder, Sam, TwoWayTransformer
from torch import nn

MEAN, STD = [123.675, 116.28, 103.53], [58.395, 57.12, 57.375]


def build(
    *,
    image_size: int = 96,
    width: int = 32,
    depth: int = 3,
    heads: int = 2,
    window: int = 4,
    dim: int = 32,
    tokens: int = 4,
    layers: int = 2,
) -> Sam:
    """Return a model whose blocks 1, 3, ... attend globally; equal arguments give equal weights."""
    torch.manual_seed(7)
    grid = image_size // 16
    sam = Sam(
        image_encoder=ImageEncoderViT(
            img_size=image_size,
            patch_size=16,
            embed_dim=width,
            depth=depth,
            num_heads=heads,
            out_chans=dim,
            norm_layer=partial(nn.LayerNorm, eps=1e-6),
            qkv_bias=True,
            use_rel_pos=True,
            window_size=window,
            global_attn_indexes=tuple(range(1, depth, 2)),
        ),
        prompt_encoder=PromptEncoder(
            embed_dim=dim, image_embedding_size=(grid, grid), input_image_size=(image_size, image_size), mask_in_chans=8
        ),
        mask_decoder=MaskDecoder(
            num_multimask_outputs=tokens - 1,
            transformer=TwoWayTransformer(depth=layers, embedding_dim=dim, mlp_dim=48, num_heads=8),
            transformer_dim=dim,
            iou_head_depth=3,
            iou_head_hidden_dim=40,
        ),
        pixel_mean=MEAN,
        pixel_std=STD,
    )
    for name, value in sam.named_parameters():
        if "rel_pos" in name or "pos_embed" in name:  # zero in a new model, which would hide mistakes
            nn.init.normal_(value, std=0.1)
    return sam.eval().requires_grad_(requires_grad=False)


def weights(**sizes: int) -> dict[str, torch.Tensor]:
    """Return the state of ``build(**sizes)``, free to be changed."""
    return {key: value.clone() for key, value in build(**sizes).state_dict().items()}
