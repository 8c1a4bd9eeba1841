"""Prompts of many images in one call of segment-anything's mask decoder, several times faster than its own modules run.

The released decoder repeats one image for all prompts; here each prompt says which image it is about, and its embedding is
gathered. Where nothing is to be differentiated, the arithmetic is reordered too (``distill.teachers.decode_folded``); answers stay
``SamPredictor``'s within rounding. Training goes through the decoder's own modules.

On a CPU everything is computed in passes of one size, the last one filled up with repeats (``distill.teachers.passes``): an answer does not
change, to the last bit, with what else is asked.
"""

import torch
from segment_anything.modeling import MaskDecoder, PromptEncoder, Sam

from distill.teachers.decode_folded import Drawing, decode_confident, decode_folded, folds
from distill.teachers.passes import whole_passes

CPU_CHUNK = 16
"""Prompts per pass on a CPU, whose tokens are computed together: 8, 16, 32 and 64 take 2.8, 2.6, 2.4 and 2.4 cpu-ms per prompt of the bundled teacher (Zen 4); a
pass that is not full costs as much for its tokens, a fifth of it."""

Points = tuple[torch.Tensor, torch.Tensor]
"""Points ``(P, K, 2)`` and their labels ``(P, K)``."""
FULL_GRID = 64 * 64
"""Cells of SAM's own embedding, for which ``CPU_CHUNK`` was measured."""


def decode_tokens(
    decoder: MaskDecoder, src: torch.Tensor, image_pe: torch.Tensor, sparse: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Run the decoder's own modules on prompts that already carry their image.

    Args:
        decoder: segment-anything's mask decoder.
        src: ``(P, C, h, w)``, each prompt's image embedding plus its dense prompt embedding.
        image_pe: ``(1, C, h, w)`` positional encoding.
        sparse: ``(P, T, C)`` point and box tokens; all prompts of one call have equally many, perhaps none.

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


def decode_prompts(  # noqa: PLR0913 - each kind of hint is one
    sam: Sam,
    embeddings: torch.Tensor,
    image_index: torch.Tensor,
    *,
    boxes: torch.Tensor | None = None,
    points: torch.Tensor | None = None,
    point_labels: torch.Tensor | None = None,
    mask_inputs: torch.Tensor | None = None,
    mask_index: torch.Tensor | None = None,
    has_mask: torch.Tensor | None = None,
    drawing: Drawing | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Decode ``P`` prompts about ``B`` images at once. All prompts carry the same kinds of hint, or none at all.

    Inside ``torch.autocast`` the image side is computed in its type; prompts are encoded, and their few tokens computed, in float32:
    a coordinate in bfloat16 would be off by up to a pixel.

    Args:
        sam: the model.
        embeddings: ``(B, C, h, w)``.
        image_index: ``(P,)`` integers: which image each prompt is about.
        boxes: ``(P, 4)`` xyxy in the model's input pixels.
        points: ``(P, K, 2)`` xy in the model's input pixels.
        point_labels: ``(P, K)``; 1 foreground, 0 background, -1 padding.
        mask_inputs: ``(Q, 1, 4h, 4w)`` logits of earlier masks.
        mask_index: ``(P,)`` integers: which of these each prompt has. Default: as many masks as prompts, each its own.
        has_mask: ``(P,)`` bool; False replaces that prompt's mask by "no mask". Default all True.
        drawing: what of the answers is needed. Default all of them; more than what is needed may be drawn.

    Returns:
        Logits ``(P, M, 4h, 4w)`` and predicted IoU ``(P, M)`` of all mask tokens; logits perhaps of the needed ones alone.
    """
    encoder = sam.prompt_encoder
    pairs = None if points is None or point_labels is None else (points, point_labels)
    count = len(image_index)
    in_passes = embeddings.device.type == "cpu" and not torch.is_grad_enabled() and count > 0
    with in_float32(embeddings):
        hints = _encode_in_passes if in_passes else _encode_at_once
        sparse, dense = hints(encoder, pairs, boxes, mask_inputs)
    sparse = sparse.to(encoder.no_mask_embed.weight.dtype)  # segment-anything begins with empty tokens of torch's default type
    sparse = sparse.expand(count, -1, -1)  # without any hint segment-anything gives one row
    nothing = encoder.no_mask_embed.weight.reshape(1, -1, 1, 1)
    if mask_inputs is None:
        dense, which = dense[:1], None  # without masks its rows are all the same
    else:
        which = torch.arange(count, device=dense.device) if mask_index is None else mask_index
        if has_mask is not None:  # "no mask" becomes the first of the dense embeddings
            dense = torch.cat([nothing.expand(1, *dense.shape[1:]), dense])
            which = torch.where(has_mask, which + 1, 0)
    if torch.is_grad_enabled() or not count:
        told = dense if which is None else dense[which]
        return decode_tokens(sam.mask_decoder, embeddings[image_index] + told, _dense_pe(sam, embeddings), sparse)
    step = CPU_CHUNK if embeddings.device.type == "cpu" else count
    if folds(sam.mask_decoder, sparse.shape[1]):
        dense = nothing if which is None else dense
        return decode_folded(sam, embeddings, image_index, sparse, dense, which, chunk=step, drawing=drawing or Drawing())
    parts = []
    for some in whole_passes(count, step).to(embeddings.device).split(step):
        src = embeddings[image_index[some]] + (dense if which is None else dense[which[some]])
        parts.append(decode_tokens(sam.mask_decoder, src, _dense_pe(sam, embeddings), sparse[some]))
    return torch.cat([logits for logits, _ in parts])[:count], torch.cat([iou for _, iou in parts])[:count]


def _encode_at_once(
    encoder: PromptEncoder, points: Points | None, boxes: torch.Tensor | None, masks: torch.Tensor | None
) -> tuple[torch.Tensor, torch.Tensor]:
    sparse, dense = encoder(points=points, boxes=boxes, masks=masks)
    return sparse, dense


def _encode_in_passes(
    encoder: PromptEncoder, points: Points | None, boxes: torch.Tensor | None, masks: torch.Tensor | None
) -> tuple[torch.Tensor, torch.Tensor]:
    """Encode prompts in calls of one size: products of other sizes have other last bits."""
    given = boxes if points is None else points[0]
    dense = [encoder(points=None, boxes=None, masks=each) for each in ([None] if masks is None else masks.split(1))]
    if given is None:
        return dense[0][0], torch.cat([each for _, each in dense])
    sparse = [
        encoder(points=points and (points[0][some], points[1][some]), boxes=None if boxes is None else boxes[some], masks=None)[0]
        for some in whole_passes(len(given), CPU_CHUNK).split(CPU_CHUNK)
    ]
    return torch.cat(sparse)[: len(given)], torch.cat([each for _, each in dense])


def in_float32(embeddings: torch.Tensor) -> torch.autocast:
    """Suspend ``torch.autocast`` where the embeddings are."""
    return torch.autocast(embeddings.device.type, enabled=False)


def _dense_pe(sam: Sam, embeddings: torch.Tensor) -> torch.Tensor:
    with in_float32(embeddings):
        places: torch.Tensor = sam.prompt_encoder.get_dense_pe()
    return places


def decode_promising(
    sam: Sam, embeddings: torch.Tensor, image_index: torch.Tensor, points: torch.Tensor, point_labels: torch.Tensor, least_iou: float
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Decode ``P`` prompts by points and draw only those with a candidate whose predicted IoU exceeds ``least_iou``.

    Args:
        sam: the model.
        embeddings: ``(B, C, h, w)``.
        image_index: ``(P,)`` integers: which image each prompt is about.
        points: ``(P, K, 2)`` xy in the model's input pixels.
        point_labels: ``(P, K)``; 1 foreground, 0 background, -1 padding.
        least_iou: of the candidates, which are all mask tokens but the first.

    Returns:
        The prompts drawn ``(K,)``, their logits ``(K, M, 4h, 4w)`` and predicted IoU ``(P, M)`` of all prompts.
    """
    on_cpu = embeddings.device.type == "cpu"
    with in_float32(embeddings):
        hints = _encode_in_passes if on_cpu and len(image_index) else _encode_at_once
        sparse, _ = hints(sam.prompt_encoder, (points, point_labels), None, None)
    sparse = sparse.to(sam.prompt_encoder.no_mask_embed.weight.dtype)
    if folds(sam.mask_decoder, sparse.shape[1]):
        # Small grids need more prompts per pass to keep a CPU busy: on 32 x 32, passes of 32 took 0.9 of the time of passes of 8.
        step = CPU_CHUNK * max(1, FULL_GRID // embeddings[0, 0].numel()) if on_cpu else len(image_index)
        return decode_confident(sam, embeddings, image_index, sparse, chunk=step, least_iou=least_iou)
    logits, iou = decode_prompts(sam, embeddings, image_index, points=points, point_labels=point_labels)
    good = (iou[:, 1:] > least_iou).any(dim=1).nonzero()[:, 0]
    return good, logits[good], iou
