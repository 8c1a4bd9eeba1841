"""Prompts of many images in one call of segment-anything's mask decoder.

The released decoder repeats one image for all prompts; here each prompt says which image it is about, and its embedding is
gathered. The arithmetic is otherwise the decoder's own, module by module, so answers equal ``SamPredictor``'s.
"""

import torch
from segment_anything.modeling import MaskDecoder, Sam


def decode_tokens(
    decoder: MaskDecoder, src: torch.Tensor, image_pe: torch.Tensor, sparse: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Run the decoder on prompts that already carry their image.

    Args:
        decoder: segment-anything's mask decoder.
        src: ``(P, C, h, w)``, each prompt's image embedding plus its dense prompt embedding.
        image_pe: ``(1, C, h, w)`` positional encoding.
        sparse: ``(P, T, C)`` point and box tokens; all prompts of one call have equally many.

    Returns:
        Logits ``(P, M, 4h, 4w)`` and predicted IoU ``(P, M)`` of all ``M`` mask tokens (the first is the single-mask answer).

    Source: ``MaskDecoder.predict_masks`` of segment-anything 1.0 (Kirillov et al. 2023), with the repeat replaced by a gather.
    """
    prompts, channels, height, width = src.shape
    output_tokens = torch.cat([decoder.iou_token.weight, decoder.mask_tokens.weight], dim=0)
    tokens = torch.cat([output_tokens.unsqueeze(0).expand(prompts, -1, -1), sparse], dim=1)
    states, image = decoder.transformer(src, image_pe.expand(prompts, -1, -1, -1), tokens)
    upscaled = decoder.output_upscaling(image.transpose(1, 2).reshape(prompts, channels, height, width))
    count = decoder.num_mask_tokens
    hyper = torch.stack([decoder.output_hypernetworks_mlps[i](states[:, 1 + i]) for i in range(count)], dim=1)
    logits = (hyper @ upscaled.flatten(2)).view(prompts, count, *upscaled.shape[-2:])
    return logits, decoder.iou_prediction_head(states[:, 0])


def decode_prompts(
    sam: Sam,
    embeddings: torch.Tensor,
    image_index: torch.Tensor,
    *,
    boxes: torch.Tensor | None = None,
    points: torch.Tensor | None = None,
    point_labels: torch.Tensor | None = None,
    mask_inputs: torch.Tensor | None = None,
    has_mask: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Decode ``P`` prompts about ``B`` images at once. All prompts carry the same kinds of hint.

    Args:
        sam: the model.
        embeddings: ``(B, C, h, w)``.
        image_index: ``(P,)`` integers: which image each prompt is about.
        boxes: ``(P, 4)`` xyxy in the model's input pixels.
        points: ``(P, K, 2)`` xy in the model's input pixels.
        point_labels: ``(P, K)``; 1 foreground, 0 background, -1 padding.
        mask_inputs: ``(P, 1, 4h, 4w)`` logits of an earlier mask.
        has_mask: ``(P,)`` bool; False replaces that prompt's mask by "no mask". Default all True.

    Returns:
        Logits ``(P, M, 4h, 4w)`` and predicted IoU ``(P, M)`` of all mask tokens.
    """
    encoder = sam.prompt_encoder
    pairs = None if points is None else (points, point_labels)
    sparse, dense = encoder(points=pairs, boxes=boxes, masks=mask_inputs)
    if mask_inputs is not None and has_mask is not None:
        nothing = encoder.no_mask_embed.weight.reshape(1, -1, 1, 1)
        dense = torch.where(has_mask[:, None, None, None], dense, nothing)
    src = embeddings[image_index] + dense
    return decode_tokens(sam.mask_decoder, src, encoder.get_dense_pe(), sparse)
