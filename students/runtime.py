"""Networks of exported students, as modules that a student asks like its own."""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from students.errors import StudentFileError
from students.origins import Exported

IMAGE, LOGITS = "image", "logits"
"""The names of input and output in ONNX."""


class OnnxNetwork(nn.Module):
    """A network that onnxruntime computes on the CPU, with as many threads as torch has."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        from onnxruntime import InferenceSession, SessionOptions

        options = SessionOptions()
        options.intra_op_num_threads = torch.get_num_threads()
        self._session = InferenceSession(str(path), options, providers=["CPUExecutionProvider"])

    def forward(self, image: Tensor) -> Tensor:
        """Return the logits of a batch."""
        answer: Any = self._session.run([LOGITS], {IMAGE: image.detach().float().cpu().numpy()})[0]
        return torch.from_numpy(answer)


def load_exported(folder: Path, exported: Exported) -> nn.Module:
    """Return the network of an exported student, in evaluation mode.

    Raises:
        StudentFileError: if its file is missing or damaged.
    """
    path = folder / exported.file
    try:
        if exported.format in ("onnx", "int8"):
            return OnnxNetwork(path).eval()
        return read_script(path)
    except Exception as error:
        what = "is missing" if not path.is_file() else f"cannot be read ({type(error).__name__}: {error})"
        message = f"{path}: the exported network {what}. Export the student again."
        raise StudentFileError(message) from error


def read_script(path: Path) -> nn.Module:
    """Return the module in a TorchScript file, on the CPU."""
    from students.export.script import quietly

    with quietly():
        module: nn.Module = torch.jit.load(path, map_location="cpu")
    return module.eval()
