"""Which family a checkpoint is of, by its tensors alone, and the network of exactly its sizes.

A family is how the network is built; a profile (``distill.teachers.profiles``) is how it is fed. Most families have one profile.
Files with plain SAM ViT tensors have several, which the tensors cannot tell apart.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from segment_anything.modeling import MaskDecoder, PromptEncoder, Sam, TwoWayTransformer
from torch import nn

from distill.errors import CheckpointError
from distill.teachers.adapters import BottleneckAdapter, SpatialChannelAdapter
from distill.teachers.conv_encoder import PIXEL_MEAN, PIXEL_STD
from distill.teachers.lora import has_lora, is_samed_delta, size_it_fits
from distill.teachers.profiles import PROFILES
from distill.teachers.rep_vit import IMAGE_SIZE, RepVit, RepVitSizes, rep_vit_sizes
from distill.teachers.tiny_vit import TinyVit, TinyVitSizes, tiny_vit_sizes
from distill.teachers.vit import BlockExtras, ImageEncoder, VitSizes, vit_sizes

Tensors = Mapping[str, torch.Tensor]
Fact = str | int | float | tuple[int, ...]
"""What a person or a program is told about a file."""
BLOCK = "image_encoder.blocks.0"
REP_VIT, FUSION = "image_encoder.features.", "image_encoder.fuse_stage"
"""A RepViT encoder, and what EdgeSAM's has and those of other SAMs do not."""
DECODER_HEADS = 8
"""Attention heads of the mask decoder, in every released file; their number leaves no trace in the tensors."""
BOTTLENECK_SCALE = 0.5
"""Factor on Medical-SAM-Adapter's MLP adapter, ``scale`` in its ``AdapterBlock``; it leaves no trace either."""
VIT_NAMES = {(768, 12): "SAM ViT-B", (1024, 24): "SAM ViT-L", (1280, 32): "SAM ViT-H"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Family:
    """One way of building a teacher."""

    name: str
    title: str
    profiles: tuple[str, ...]
    """What may feed it; the first is taken where there is only one."""
    delta: bool = False
    """The file holds changes to another file, which has to be named as ``base``."""
    encoder: str = "ViT"
    """How its image encoder is built."""
    unused: tuple[str, ...] = ()
    """Parts of names of tensors that the family's files carry and its predictor never touches."""


OWN_TEACHER, OWN_STUDENT = "samdistill-conv", "samdistill-student"
"""The families of this package's own files, whose headers say what they are: the bundled teacher, and what it or others have taught."""
SAM_VIT = Family(name="sam-vit", title="SAM ViT", profiles=("sam", "medsam", "sam-med2d"))
FAMILIES: Mapping[str, Family] = {
    each.name: each
    for each in (
        SAM_VIT,
        Family(name="sam-med2d", title="SAM-Med2D with adapters", profiles=("sam-med2d",)),
        Family(
            name="medical-sam-adapter", title="Medical-SAM-Adapter (2D)", profiles=("medical-sam-adapter",), unused=(".Depth_Adapter.",)
        ),
        Family(
            name="mobile-sam",
            title="MobileSAM or TinySAM (TinyViT)",
            profiles=("mobile-sam",),
            encoder="TinyViT",
            unused=("image_encoder.norm_head.", "image_encoder.head."),
        ),
        Family(
            name="lite-medsam",
            title="LiteMedSAM (TinyViT)",
            profiles=("lite-medsam",),
            encoder="TinyViT",
            unused=("image_encoder.norm_head.", "image_encoder.head."),
        ),
        Family(name="edge-sam", title="EdgeSAM (RepViT)", profiles=("edge-sam",), encoder="RepViT"),
        Family(name="samed", title="SAMed LoRA delta", profiles=("samed",), delta=True),
        Family(name="lora", title="LoRA delta", profiles=("sam", "medsam", "sam-med2d", "samed"), delta=True),
        Family(name=OWN_TEACHER, title="samdistill's own teacher", profiles=("samdistill-conv",), encoder="a convolutional network"),
        Family(
            name=OWN_STUDENT,
            title="a student of a promptable teacher",
            profiles=tuple(name for name, profile in PROFILES.items() if profile.prompts),
            encoder="a convolutional network",
        ),
    )
}

_PLAIN_SAM = "a SAM ViT-B, MedSAM, SAM-Med2D or MobileSAM checkpoint, or 'bundled'"
REFUSED: tuple[tuple[str, str, Callable[[Tensors], bool]], ...] = (
    (
        "SAM 3",
        f"Use {_PLAIN_SAM}.",
        lambda t: _starts(t, "detector.") and ("tracker." in _heads(t) or any("vision_backbone" in k for k in t)),
    ),
    (
        "SAM 2 or MedSAM2 (Hiera encoder)",
        f"Use {_PLAIN_SAM}; for MedSAM2, MedSAM's medsam_vit_b.pth with profile medsam.",
        lambda t: _starts(t, "image_encoder.trunk.") or _starts(t, "sam_mask_decoder."),
    ),
    ("HQ-SAM", "Use the SAM file of the same size (sam_vit_b_01ec64.pth, ...).", lambda t: _starts(t, "mask_decoder.hf_token")),
    ("EfficientSAM", "Use MobileSAM's mobile_sam.pt.", lambda t: "prompt_encoder.invalid_points.weight" in t),
    (
        "SAM-Med3D (3D patches)",
        "Use SAM-Med2D's sam-med2d_b.pth, slice by slice.",
        lambda t: _ndim(t, "image_encoder.patch_embed.proj.weight") == 5,
    ),
    (
        "a SAM on RepViT without EdgeSAM's fusion (RepViT-SAM, ...)",
        "Use EdgeSAM's edge_sam_3x.pth or MobileSAM's mobile_sam.pt.",
        lambda t: _starts(t, REP_VIT) and not _starts(t, FUSION),
    ),
    (
        "SAM in the names of Hugging Face transformers",
        "Use Meta's own file (sam_vit_b_01ec64.pth, ...).",
        lambda t: _starts(t, "vision_encoder.") and _starts(t, "mask_decoder."),
    ),
)
"""Name, what to use instead, and how its tensors are told."""


def _starts(tensors: Tensors, prefix: str) -> bool:
    return any(key.startswith(prefix) for key in tensors)


def _heads(tensors: Tensors) -> set[str]:
    return {key.split(".")[0] + "." for key in tensors}


def _ndim(tensors: Tensors, key: str) -> int:
    return tensors[key].ndim if key in tensors else 0


def recognise(tensors: Tensors, header: Mapping[str, str], name: str) -> Family:
    """Tell the family; nothing but tensors (and our own files' header) is looked at.

    Args:
        tensors: of the file.
        header: of a safetensors file.
        name: of the file, for messages.

    Raises:
        CheckpointError: for families that are known but not loaded, with what to use instead, and for other files.
    """
    if header.get("family") in {OWN_TEACHER, OWN_STUDENT}:
        return FAMILIES[header["family"]]
    for title, instead, matches in REFUSED:
        if matches(tensors):
            message = f"{name} is {title}, which is not loaded here. {instead}"
            raise CheckpointError(message)
    for family, matches in (("samed", is_samed_delta), ("lora", has_lora)):
        if matches(tensors):
            return FAMILIES[family]
    if not (_starts(tensors, "image_encoder.") and "mask_decoder.mask_tokens.weight" in tensors and _starts(tensors, "prompt_encoder.")):
        sample = ", ".join(sorted(tensors)[:3])
        message = f"{name} is no promptable teacher that is known here: its tensors are called {sample}, ... Expected image_encoder.*, prompt_encoder.*, mask_decoder.*."
        raise CheckpointError(message)
    if known := _by_encoder(tensors):
        return FAMILIES[known]
    encoder = ", ".join([key for key in sorted(tensors) if key.startswith("image_encoder.")][:3])
    message = f"{name} has a SAM's decoder, but an image encoder that is not known here ({encoder}, ...). Use {_PLAIN_SAM}."
    raise CheckpointError(message)


def _by_encoder(tensors: Tensors) -> str | None:
    """Name the family of a whole model."""
    if "image_encoder.patch_embed.seq.0.c.weight" in tensors:
        kernel = tensors["image_encoder.patch_embed.seq.0.c.weight"].shape[-1]
        return {1: "lite-medsam", 3: "mobile-sam"}.get(kernel)
    if _starts(tensors, REP_VIT):
        return "edge-sam"
    if "image_encoder.pos_embed" in tensors and f"{BLOCK}.attn.qkv.weight" in tensors:
        adapters = {f"{BLOCK}.Adapter.spatial.0.weight": "sam-med2d", f"{BLOCK}.MLP_Adapter.D_fc1.weight": "medical-sam-adapter"}
        return next((family for key, family in adapters.items() if key in tensors), SAM_VIT.name)
    return None


def build_network(family: Family, tensors: Tensors, name: str) -> Sam:
    """Assemble the network of exactly the sizes that ``tensors`` have, with random weights.

    Raises:
        CheckpointError: if tensors that tell a size are missing or contradict each other.
    """
    return build_around(lambda: _encoder(family, tensors), family, tensors, name)


def build_around(encoder: Callable[[], tuple[nn.Module, int, int]], family: Family, tensors: Tensors, name: str) -> Sam:
    """Assemble SAM's prompt encoder and mask decoder, of the sizes that ``tensors`` have, around an encoder.

    Args:
        encoder: returns the encoder, the side of its input in pixels and of its grid.
        family: of the file, for messages.
        tensors: of the whole model.
        name: of the file, for messages.

    Raises:
        CheckpointError: as `build_network`.
    """
    try:
        return _assemble(*encoder(), tensors)
    except (KeyError, IndexError, ValueError, ZeroDivisionError, AssertionError) as error:
        message = f"{name} looks like {family.title}, but its sizes cannot be told: {type(error).__name__} at {error}. Is the file whole?"
        raise CheckpointError(message) from error


def _encoder(family: Family, tensors: Tensors) -> tuple[nn.Module, int, int]:
    """Return the encoder, the side of its input in pixels and of its grid."""
    if family.name in {"mobile-sam", "lite-medsam"}:
        tiny = tiny_vit_sizes(tensors)
        return TinyVit(tiny), tiny.image_size, 64
    if family.name == "edge-sam":
        return RepVit(rep_vit_sizes(tensors)), IMAGE_SIZE, 64
    sizes = vit_sizes(tensors)
    return ImageEncoder(sizes, _extras(family, sizes, tensors)), sizes.image_size, sizes.image_size // sizes.patch


def _extras(family: Family, sizes: VitSizes, tensors: Tensors) -> BlockExtras | None:
    """Return the modules that the family adds to every block."""
    width = sizes.width
    if family.name == "sam-med2d":
        hidden = tensors[f"{BLOCK}.Adapter.channel.0.weight"].shape[0]
        return BlockExtras(after_attention={}, beside_mlp={"Adapter": lambda: SpatialChannelAdapter(width, hidden)})
    if family.name == "medical-sam-adapter":
        space, mlp = (tensors[f"{BLOCK}.{name}.D_fc1.weight"].shape[0] for name in ("Space_Adapter", "MLP_Adapter"))
        return BlockExtras(
            after_attention={"Space_Adapter": lambda: BottleneckAdapter(width, space, skip=True)},
            beside_mlp={"MLP_Adapter": lambda: BottleneckAdapter(width, mlp, skip=False, scale=BOTTLENECK_SCALE)},
        )
    return None


def _assemble(encoder: nn.Module, image_size: int, grid: int, tensors: Tensors) -> Sam:
    dim = tensors["mask_decoder.mask_tokens.weight"].shape[1]
    layers = 1 + max(int(key.split(".")[3]) for key in tensors if key.startswith("mask_decoder.transformer.layers."))
    attention = "mask_decoder.transformer.layers.0.cross_attn_token_to_image.q_proj.weight"
    transformer = TwoWayTransformer(
        depth=layers,
        embedding_dim=dim,
        mlp_dim=tensors["mask_decoder.transformer.layers.0.mlp.lin1.weight"].shape[0],
        num_heads=DECODER_HEADS,
        attention_downsample_rate=dim // tensors[attention].shape[0],
    )
    head = "mask_decoder.iou_prediction_head.layers."
    return Sam(
        image_encoder=encoder,
        prompt_encoder=PromptEncoder(
            embed_dim=dim,
            image_embedding_size=(grid, grid),
            input_image_size=(image_size, image_size),
            mask_in_chans=tensors["prompt_encoder.mask_downscaling.3.weight"].shape[0],
        ),
        mask_decoder=MaskDecoder(
            num_multimask_outputs=tensors["mask_decoder.mask_tokens.weight"].shape[0] - 1,
            transformer=transformer,
            transformer_dim=dim,
            iou_head_depth=sum(key.startswith(head) and key.endswith("weight") for key in tensors),
            iou_head_hidden_dim=tensors[f"{head}0.weight"].shape[0],
        ),
        pixel_mean=list(PIXEL_MEAN),
        pixel_std=list(PIXEL_STD),
    )


def describe(family: Family, tensors: Tensors) -> tuple[int, dict[str, Fact]]:
    """Return the side of the input in pixels, and the sizes that a person wants to see."""
    if family.delta:
        width, blocks = size_it_fits(tensors)
        known = VIT_NAMES.get((width, blocks))
        return 0, {
            "needs": f"base: the file it was trained on, a ViT of width {width} with {blocks} blocks{f' ({known})' if known else ''}"
        }
    known_tokens = "mask_decoder.mask_tokens.weight" in tensors
    decoder: dict[str, Fact] = {"mask tokens": tensors["mask_decoder.mask_tokens.weight"].shape[0] if known_tokens else "?"}
    if family.name in {"mobile-sam", "lite-medsam"}:
        return _describe_tiny(tiny_vit_sizes(tensors), decoder)
    if family.name == "edge-sam":
        return _describe_rep(rep_vit_sizes(tensors), decoder)
    sizes = vit_sizes(tensors)
    details: dict[str, Fact] = {
        "size": VIT_NAMES.get((sizes.width, sizes.depth), "ViT of its own size"),
        "width": sizes.width,
        "depth": sizes.depth,
        "heads": sizes.heads,
        "window": sizes.window,
        "global blocks": sizes.global_blocks,
        "decoder width": sizes.out_channels,
    }
    adapters = sorted({part for key in tensors for part in key.split(".") if part.endswith("Adapter")})
    return sizes.image_size, details | decoder | {"adapters": ", ".join(adapters) or "none"}


def _describe_tiny(sizes: TinyVitSizes, decoder: dict[str, Fact]) -> tuple[int, dict[str, Fact]]:
    details: dict[str, Fact] = {
        "widths": sizes.widths,
        "depths": sizes.depths,
        "heads": sizes.heads[1:],
        "windows": sizes.windows[1:],
        "decoder width": sizes.out_channels,
    }
    return sizes.image_size, details | decoder | {"adapters": "none"}


def _describe_rep(sizes: RepVitSizes, decoder: dict[str, Fact]) -> tuple[int, dict[str, Fact]]:
    details: dict[str, Fact] = {
        "widths": sizes.widths,
        "depths": sizes.depths,
        "decoder width": sizes.out_channels,
    }
    return IMAGE_SIZE, details | decoder | {"adapters": "none"}
