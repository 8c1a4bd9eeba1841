"""TorchScript: a network that runs wherever libtorch does, without the classes it was built from."""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor, nn

FILE = "model.ts"
"""MONAI's name for it."""


@contextmanager
def quietly() -> Iterator[None]:
    """Silence what PyTorch says of its older exporters: that there are newer ones, and that shapes were looked at while tracing.

    The shapes that our networks ask for only choose between precisions, which is the same in float32, as the comparison afterwards shows.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def write_script(network: nn.Module, example: Tensor, path: Path) -> None:
    """Trace a network in evaluation mode and write it.

    Args:
        network: On the CPU.
        example: One patch, ``b c`` and space.
        path: The file.
    """
    with quietly(), torch.no_grad():
        traced = torch.jit.trace(network, example, check_trace=False)
        torch.jit.save(traced, path)
