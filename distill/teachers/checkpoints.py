"""Look into a checkpoint file, say what it is, and build the teacher from it; never run what it pickles.

Known so far: the bundled teacher (safetensors with its sizes in the header) and the SAM ViT family (sizes derived from the
tensors). SAM and several medical fine-tunes have identical tensors but different preprocessing, so for that family the profile
must be named unless the file's hash is known.
"""

import hashlib
import json
from dataclasses import dataclass
from functools import partial
from importlib.resources import as_file, files
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from segment_anything.modeling import ImageEncoderViT, MaskDecoder, PromptEncoder, Sam, TwoWayTransformer
from torch import nn

from distill.errors import CheckpointError
from distill.teachers.base import TeacherProfile
from distill.teachers.conv_encoder import PIXEL_MEAN, PIXEL_STD, ConvSamConfig, build_conv_sam
from distill.teachers.sam import SamTeacher

BUNDLED = "bundled"
WRAPPERS = ("model", "state_dict", "model_state_dict", "model_state")
PREFIXES = ("module.", "_orig_mod.", "sam.")
KNOWN_MD5 = {"01ec64d29a2fca3f0661936605ae66f8": "sam"}
"""Meta's ViT-B; the first six digits of each hash also stand in the official file's name."""
UNSUPPORTED = {
    "image_encoder.trunk.": "SAM 2 (Hiera encoder)",
    "image_encoder.patch_embed.seq.": "MobileSAM or LiteMedSAM (TinyViT encoder)",
    "image_encoder.features.": "EdgeSAM (RepViT encoder)",
    "image_encoder.blocks.0.Adapter.": "SAM-Med2D with adapters",
    "image_encoder.blocks.0.MLP_Adapter.": "Medical-SAM-Adapter",
    "w_a_000": "a SAMed LoRA delta",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckpointInfo:
    """What ``inspect_checkpoint`` found."""

    family: str
    """``samdistill-conv`` or ``sam-vit``."""
    profile: str | None
    """The protocol, or None where the user has to name it."""
    image_size: int
    parameters: int
    fingerprint: str
    """First 16 hexadecimal digits of the file's SHA-256."""
    details: dict[str, str]


@dataclass(frozen=True, slots=True)
class _Contents:
    tensors: dict[str, torch.Tensor]
    header: dict[str, str]


def bundled_path() -> Path:
    """Return the file of the teacher that ships with the package.

    Raises:
        CheckpointError: if this installation lacks it.
    """
    with as_file(files("distill.teachers") / "bundled" / "teacher.safetensors") as path:
        if not path.exists():
            message = "this installation has no bundled teacher (distill/teachers/bundled/teacher.safetensors). Reinstall the package, or train one: python -m distill.teachers.pretrain --help"
            raise CheckpointError(message)
        return path


def inspect_checkpoint(path: Path | str) -> CheckpointInfo:
    """Say what a file is without building the model.

    Raises:
        CheckpointError: if it is no checkpoint, or one of a family that is recognised but not supported.
    """
    path = bundled_path() if str(path) == BUNDLED else Path(path)
    contents = read_tensors(path)
    parameters = sum(tensor.numel() for tensor in contents.tensors.values())
    digest = fingerprint_file(path)
    if contents.header.get("family") == "samdistill-conv":
        size = int(json.loads(contents.header["config"])["image_size"])
        return CheckpointInfo(
            family="samdistill-conv",
            profile="samdistill-conv",
            image_size=size,
            parameters=parameters,
            fingerprint=digest,
            details=contents.header,
        )
    _refuse_unsupported(path, contents.tensors)
    sizes = vit_sizes(contents.tensors)
    return CheckpointInfo(
        family="sam-vit",
        profile=KNOWN_MD5.get(_md5(path)),
        image_size=sizes.image_size,
        parameters=parameters,
        fingerprint=digest,
        details={
            "width": str(sizes.width),
            "depth": str(sizes.depth),
            "heads": str(sizes.heads),
            "global blocks": str(sizes.global_blocks),
        },
    )


def load_teacher(checkpoint: Path | str, *, profile: str | None = None, device: str = "auto") -> SamTeacher:
    """Build a teacher from ``"bundled"`` or a checkpoint file.

    Args:
        checkpoint: ``"bundled"``, or a ``.safetensors``, ``.pt`` or ``.pth`` file.
        profile: the file's protocol, where it cannot be told from the file: ``"sam"``.
        device: ``"auto"`` takes CUDA where there is one.

    Raises:
        CheckpointError: if the file is missing, damaged, of an unsupported family, or ambiguous.
    """
    path = bundled_path() if str(checkpoint) == BUNDLED else Path(checkpoint)
    info = inspect_checkpoint(path)
    chosen = profile or info.profile
    if chosen is None:
        message = (
            f"{path.name} has the tensors of SAM, which MedSAM and other fine-tunes share, and its hash is not known; "
            "the two prepare images differently. If it is Meta's SAM or was trained with its preprocessing, say profile: sam."
        )
        raise CheckpointError(message)
    if chosen not in {"sam", "samdistill-conv"} or (info.profile == "samdistill-conv") != (chosen == "samdistill-conv"):
        message = (
            f"{path.name} is of family {info.family} and cannot be used with profile {chosen!r}. Known for it: {info.profile or 'sam'}."
        )
        raise CheckpointError(message)
    contents = read_tensors(path)
    sam = _build(contents)
    _load_strictly(sam, contents.tensors, path)
    where = ("cuda" if torch.cuda.is_available() else "cpu") if device == "auto" else device
    own = TeacherProfile(name=chosen, image_size=info.image_size, logit_shift=float(contents.header.get("logit_shift", 0.0)))
    return SamTeacher(sam, own, info.fingerprint, device=where)


def _build(contents: _Contents) -> Sam:
    if contents.header.get("family") == "samdistill-conv":
        sizes = json.loads(contents.header["config"])
        return build_conv_sam(ConvSamConfig.from_json(sizes))
    return build_vit_sam(contents.tensors)


def fingerprint_file(path: Path) -> str:
    """Return the first 16 hexadecimal digits of a file's SHA-256."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()[:16]


def _md5(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, partial(hashlib.md5, usedforsecurity=False)).hexdigest()


def read_tensors(path: Path) -> _Contents:
    """Read a file's tensors and header; unwrap trainers' dictionaries and strip their prefixes.

    Raises:
        CheckpointError: if the file is missing, empty, truncated, or would have to run code to be read.
    """
    if not path.is_file():
        message = f"no checkpoint at {path}. Give 'bundled' or the path of a .safetensors, .pt or .pth file."
        raise CheckpointError(message)
    try:
        if path.suffix == ".safetensors":
            with safe_open(path, "pt") as file:
                return _Contents({name: file.get_tensor(name) for name in file.keys()}, dict(file.metadata() or {}))  # noqa: SIM118 - safe_open is no mapping
        loaded = torch.load(path, map_location="cpu", weights_only=True)
    except (SafetensorError, RuntimeError, EOFError, ValueError, OSError) as error:
        message = f"{path.name} cannot be read as a checkpoint ({path.stat().st_size} bytes): {error}. It is probably truncated; fetch it again and compare its hash."
        raise CheckpointError(message) from error
    except Exception as error:  # pickle.UnpicklingError and whatever a hostile file provokes
        message = f"{path.name} holds more than tensors ({type(error).__name__}), and running a file's own code is refused. Re-save it as safetensors, or save only its state_dict."
        raise CheckpointError(message) from error
    return _Contents(_unwrap(loaded, path), {})


def _unwrap(loaded: object, path: Path) -> dict[str, torch.Tensor]:
    for wrapper in WRAPPERS:
        if isinstance(loaded, dict) and isinstance(loaded.get(wrapper), dict):
            loaded = loaded[wrapper]
    tensors = {str(key): value for key, value in loaded.items() if isinstance(value, torch.Tensor)} if isinstance(loaded, dict) else {}
    if not tensors:
        message = f"{path.name} holds no tensors; it looks like a {type(loaded).__name__}. Save the model's state_dict."
        raise CheckpointError(message)
    for prefix in PREFIXES * 2:
        if all(key.startswith(prefix) for key in tensors):
            tensors = {key.removeprefix(prefix): value for key, value in tensors.items()}
    return tensors


def _refuse_unsupported(path: Path, tensors: dict[str, torch.Tensor]) -> None:
    for start, name in UNSUPPORTED.items():
        if any(key.startswith(start) for key in tensors):
            message = f"{path.name} is {name}, which this version does not load. Use 'bundled' or a SAM ViT checkpoint."
            raise CheckpointError(message)
    if "image_encoder.pos_embed" not in tensors or "mask_decoder.iou_token.weight" not in tensors:
        sample = ", ".join(sorted(tensors)[:3])
        message = f"{path.name} is no promptable teacher that is known here: its tensors are called {sample}, ... Expected image_encoder.*, prompt_encoder.*, mask_decoder.*."
        raise CheckpointError(message)


@dataclass(frozen=True, slots=True, kw_only=True)
class VitSizes:
    """Sizes of a SAM ViT, read off its tensors."""

    width: int
    depth: int
    heads: int
    image_size: int
    patch: int
    window: int
    global_blocks: tuple[int, ...]
    out_channels: int
    mlp_ratio: float
    decoder_mlp: int


def vit_sizes(tensors: dict[str, torch.Tensor]) -> VitSizes:
    """Derive every size of the encoder and decoder from tensor shapes; nothing is assumed from a model name."""
    patch = tensors["image_encoder.patch_embed.proj.weight"].shape[-1]
    width = tensors["image_encoder.patch_embed.proj.weight"].shape[0]
    grid = tensors["image_encoder.pos_embed"].shape[1]
    depth = 1 + max(int(key.split(".")[2]) for key in tensors if key.startswith("image_encoder.blocks."))
    spans = [tensors[f"image_encoder.blocks.{n}.attn.rel_pos_h"].shape for n in range(depth)]
    windows = {(span[0] + 1) // 2 for span in spans} - {grid}
    return VitSizes(
        width=width,
        depth=depth,
        heads=width // spans[0][1],
        image_size=grid * patch,
        patch=patch,
        window=min(windows, default=0),
        global_blocks=tuple(n for n, span in enumerate(spans) if (span[0] + 1) // 2 == grid),
        out_channels=tensors["image_encoder.neck.0.weight"].shape[0],
        mlp_ratio=tensors["image_encoder.blocks.0.mlp.lin1.weight"].shape[0] / width,
        decoder_mlp=tensors["mask_decoder.transformer.layers.0.mlp.lin1.weight"].shape[0],
    )


def build_vit_sam(tensors: dict[str, torch.Tensor]) -> Sam:
    """Assemble segment-anything's ViT ``Sam`` of the sizes that ``tensors`` have."""
    sizes = vit_sizes(tensors)
    grid = sizes.image_size // sizes.patch
    encoder = ImageEncoderViT(
        img_size=sizes.image_size,
        patch_size=sizes.patch,
        embed_dim=sizes.width,
        depth=sizes.depth,
        num_heads=sizes.heads,
        mlp_ratio=sizes.mlp_ratio,
        out_chans=sizes.out_channels,
        norm_layer=partial(nn.LayerNorm, eps=1e-6),
        qkv_bias=True,
        use_rel_pos=True,
        window_size=sizes.window,
        global_attn_indexes=sizes.global_blocks,
    )
    dim = sizes.out_channels
    prompt = PromptEncoder(
        embed_dim=dim,
        image_embedding_size=(grid, grid),
        input_image_size=(sizes.image_size, sizes.image_size),
        mask_in_chans=tensors["prompt_encoder.mask_downscaling.3.weight"].shape[0],
    )
    layers = 1 + max(int(key.split(".")[3]) for key in tensors if key.startswith("mask_decoder.transformer.layers."))
    decoder = MaskDecoder(
        num_multimask_outputs=tensors["mask_decoder.mask_tokens.weight"].shape[0] - 1,
        # 8 heads in every released file; the count leaves no trace in the tensors.
        transformer=TwoWayTransformer(depth=layers, embedding_dim=dim, mlp_dim=sizes.decoder_mlp, num_heads=8),
        transformer_dim=dim,
        iou_head_depth=sum(key.startswith("mask_decoder.iou_prediction_head.layers.") and key.endswith("weight") for key in tensors),
        iou_head_hidden_dim=tensors["mask_decoder.iou_prediction_head.layers.0.weight"].shape[0],
    )
    return Sam(image_encoder=encoder, prompt_encoder=prompt, mask_decoder=decoder, pixel_mean=list(PIXEL_MEAN), pixel_std=list(PIXEL_STD))


def _load_strictly(sam: Sam, tensors: dict[str, torch.Tensor], path: Path) -> None:
    own = sam.state_dict()
    missing, unexpected = sorted(own.keys() - tensors.keys()), sorted(tensors.keys() - own.keys())
    misshapen = [
        f"{key} {tuple(tensors[key].shape)} instead of {tuple(own[key].shape)}"
        for key in own.keys() & tensors.keys()
        if own[key].shape != tensors[key].shape
    ]
    if missing or unexpected or misshapen:
        message = (
            f"{path.name} does not fit its family: {len(missing)} tensors missing {missing[:3]}, {len(unexpected)} unexpected {unexpected[:3]}, "
            f"{len(misshapen)} mis-shaped {misshapen[:3]}. A fine-tune with extra modules needs a loader that knows them."
        )
        raise CheckpointError(message)
    bad = [key for key, value in tensors.items() if value.is_floating_point() and not bool(torch.isfinite(value).all())]
    if bad:
        message = f"{path.name} holds NaN or infinity in {bad[:3]}; the training that wrote it diverged. Take an earlier checkpoint."
        raise CheckpointError(message)
    sam.load_state_dict({key: value.float() for key, value in tensors.items()})
