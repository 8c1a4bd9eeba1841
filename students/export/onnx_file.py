"""ONNX: a network that other runtimes compute, onnxruntime among them."""

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from students.export.script import quietly
from students.runtime import IMAGE, LOGITS

FILE = "model.onnx"

OPSET = 18
"""Of ONNX 1.13 (2022): every runtime of the last years reads it, and all that our networks need is in it."""


def write_onnx(network: nn.Module, example: Tensor, path: Path, facts: Mapping[str, str]) -> None:
    """Write a network whose batch and space may have any size.

    Args:
        network: On the CPU, in evaluation mode.
        example: One patch, ``b c`` and space.
        path: The file.
        facts: Kept in the file itself, for whoever meets it without the card beside it.
    """
    import onnx

    space = "zyx"[-(example.ndim - 2) :]
    axes = {0: "batch", **dict(enumerate(space, start=2))}
    with quietly():
        # The exporter through TorchScript: the one through torch.export needs onnxscript, which nothing else here does.
        torch.onnx.export(
            network,
            (example,),
            str(path),
            dynamo=False,
            opset_version=OPSET,
            input_names=[IMAGE],
            output_names=[LOGITS],
            dynamic_axes={IMAGE: axes, LOGITS: axes},
        )
    model = onnx.load(path)
    onnx.helper.set_model_props(model, dict(facts))
    onnx.checker.check_model(model, full_check=True)
    onnx.save(model, path)
