"""Fill a network with a file's tensors so that nothing is left over on either side."""

from collections.abc import Mapping

import torch
from segment_anything.modeling import Sam

from distill.errors import CheckpointError
from distill.teachers.families import Family

Tensors = Mapping[str, torch.Tensor]
SHOWN = 3
"""Names of tensors in a message."""


def load_strictly(sam: Sam, tensors: Tensors, family: Family, name: str) -> None:
    """Fill the network, in float32 whatever ``torch.set_default_dtype`` made of it; every tensor of both sides must fit.

    Raises:
        CheckpointError: if ``check_tensors`` does.
    """
    used = check_tensors(sam.state_dict(), tensors, family, name)
    sam.float().load_state_dict({key: value.float() if value.is_floating_point() else value for key, value in used.items()})


def check_tensors(own: Tensors, tensors: Tensors, family: Family, name: str) -> dict[str, torch.Tensor]:
    """Hold a file's tensors against a network's, and return those that go into it.

    Args:
        own: the network's; only names and shapes count.
        tensors: the file's.
        family: says what the file may hold besides.
        name: what messages call the file.

    Raises:
        CheckpointError: naming missing, unexpected and mis-shaped tensors with the likely cause, or weights that are not finite.
    """
    used = {key: value for key, value in tensors.items() if not any(part in key for part in family.unused)}
    missing, unexpected = sorted(own.keys() - used.keys()), sorted(used.keys() - own.keys())
    misshapen = [
        f"{key} {tuple(used[key].shape)} instead of {tuple(own[key].shape)}"
        for key in sorted(own.keys() & used.keys())
        if own[key].shape != used[key].shape
    ]
    if missing or unexpected or misshapen:
        lists = (("missing", missing), ("unexpected", unexpected), ("mis-shaped", misshapen))
        wrong = "; ".join(f"{_some(keys)} {what}: {_names(keys)}" for what, keys in lists if keys)
        message = f"{name} does not fit its family ({family.title}): {wrong}. {_likely_cause(missing, unexpected, misshapen)}"
        raise CheckpointError(message)
    bad = [key for key, value in used.items() if value.is_floating_point() and not bool(torch.isfinite(value).all())]
    if bad:
        message = (
            f"{name} holds NaN or infinity in {_some(bad)}: {_names(bad)}. The training that wrote it diverged; take an earlier checkpoint."
        )
        raise CheckpointError(message)
    return used


def _some(keys: list[str]) -> str:
    return "1 tensor" if len(keys) == 1 else f"{len(keys)} tensors"


def _names(keys: list[str]) -> str:
    return ", ".join([*keys[:SHOWN], *(["..."] if len(keys) > SHOWN else [])])


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
