"""Fill a network with a file's tensors so that nothing is left over on either side."""

from collections.abc import Mapping

import torch
from segment_anything.modeling import Sam

from distill.errors import CheckpointError
from distill.teachers.families import Family


def load_strictly(sam: Sam, tensors: Mapping[str, torch.Tensor], family: Family, name: str) -> None:
    """Fill the network; every tensor of both sides must fit.

    Raises:
        CheckpointError: naming missing, unexpected and mis-shaped tensors with the likely cause, or weights that are not finite.
    """
    own = sam.state_dict()
    used = {key: value for key, value in tensors.items() if not any(part in key for part in family.unused)}
    missing, unexpected = sorted(own.keys() - used.keys()), sorted(used.keys() - own.keys())
    misshapen = [
        f"{key} {tuple(used[key].shape)} instead of {tuple(own[key].shape)}"
        for key in sorted(own.keys() & used.keys())
        if own[key].shape != used[key].shape
    ]
    if missing or unexpected or misshapen:
        message = (
            f"{name} does not fit its family ({family.title}): {len(missing)} tensors missing {missing[:3]}, "
            f"{len(unexpected)} unexpected {unexpected[:3]}, {len(misshapen)} mis-shaped {misshapen[:3]}. {_likely_cause(missing, unexpected, misshapen)}"
        )
        raise CheckpointError(message)
    bad = [key for key, value in used.items() if value.is_floating_point() and not bool(torch.isfinite(value).all())]
    if bad:
        message = f"{name} holds NaN or infinity in {bad[:3]}; the training that wrote it diverged. Take an earlier checkpoint."
        raise CheckpointError(message)
    sam.load_state_dict({key: value.float() if value.is_floating_point() else value for key, value in used.items()})


def _likely_cause(missing: list[str], unexpected: list[str], misshapen: list[str]) -> str:
    added = [key for key in unexpected if key.startswith("image_encoder.blocks.")]
    if any("adapter" in key.lower() for key in added + missing):
        return "Its adapters are not those of the family, or are only in some blocks: it needs the code it was trained with."
    if added:
        return "It adds modules to the encoder's blocks that no family here has: it needs the code it was trained with."
    if missing and all(key.startswith(missing[0].split(".")[0]) for key in missing) and not unexpected:
        return f"Part of {missing[0].split('.')[0]} was not saved: save the whole model, or fetch the file again."
    if unexpected and not missing and not misshapen:
        return "A fine-tune with extra modules needs a loader that knows them."
    return "It was cut short while saving, or is a fine-tune that changed the network."
