"""An nnU-Net answers for a volume, through nnU-Net's own predictor and without a process of its own."""

import contextlib
import io
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float32
from torch import nn

from students.checkpoint import with_weights
from students.errors import StudentFileError
from students.nnunet.job import MODEL
from students.spec import StudentCard


class NnunetAnswers:
    """Answers of a student of the kind ``nnunet``."""

    def __init__(self, predictor: Any, network: nn.Module, *, flat: bool) -> None:
        self.network = network
        self._predictor, self._flat = predictor, flat

    def probability(self, image_czyx: np.ndarray, spacing_zyx_mm: Sequence[float]) -> Float32[np.ndarray, "c z y x"]:
        """Return the probability of background and each class: nnU-Net crops, resamples, slides its window, and undoes the former."""
        from students.nnunet.reader import finite, told_spacing

        told = {"spacing": told_spacing(spacing_zyx_mm, flat=self._flat)}
        _, probability = self._predictor.predict_single_npy_array(finite(image_czyx), told, None, None, True)  # noqa: FBT003 - nnU-Net's own order
        return np.asarray(probability, np.float32)


def load_answers(folder: Path, card: StudentCard, device: torch.device) -> NnunetAnswers:
    """Load the network of a student's folder into nnU-Net's predictor.

    Args:
        folder: Of the student.
        card: Its card, which has a record of nnU-Net.
        device: Where to compute.

    Raises:
        StudentFileError: if its files are missing or do not belong together.
    """
    record = card.nnunet
    if record is None:
        message = f"{folder}: its card says nothing of nnU-Net. Load it with load_student."
        raise StudentFileError(message)
    # nnU-Net reads it when it is imported, and lets resampling use so many threads: by default 8, on any machine.
    os.environ.setdefault("nnUNet_def_n_proc", str(torch.get_num_threads()))
    from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor
    from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

    plans, content = PlansManager(_read(folder, "plans.json")), _read(folder, "dataset.json")
    configuration = plans.get_configuration(record.configuration)
    network = with_weights(_network(configuration, card), folder).to(device)
    with contextlib.redirect_stdout(io.StringIO()):  # it says on a CPU that this is no GPU
        predictor = nnUNetPredictor(use_mirroring=bool(record.mirrored_axes), device=device, allow_tqdm=False)
    axes = record.mirrored_axes or None
    predictor.manual_initialization(network, plans, configuration, [network.state_dict()], content, "nnUNetTrainer", axes)
    return NnunetAnswers(predictor, network, flat=record.flat)


def _network(configuration: Any, card: StudentCard) -> nn.Module:
    from nnunetv2.utilities.get_network_from_plans import get_network_from_plans

    network: nn.Module = get_network_from_plans(
        configuration.network_arch_class_name,
        configuration.network_arch_init_kwargs,
        configuration.network_arch_init_kwargs_req_import,
        card.plan.in_channels,
        card.plan.outputs,
        allow_init=False,
        deep_supervision=False,
    )
    return network


def _read(folder: Path, name: str) -> dict[str, Any]:
    path = folder / MODEL / name
    try:
        content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        message = f"{path}: cannot be read ({error}). Train again, or restore the folder."
        raise StudentFileError(message) from error
    return content
