"""A trained nnU-Net becomes a student's folder.

The folder holds ``student.json`` and ``model.safetensors`` as every student's, and in ``nnunet/`` plans, ``dataset.json``, fingerprint and splits in
nnU-Net's own format. There they name nnU-Net's reader of NIfTI instead of ours, so that its own tools can use the model.
"""

import json
import shutil
from collections.abc import Sequence
from importlib.metadata import version
from typing import Any

import numpy as np

from students.checkpoint import save_student
from students.nnunet.dataset import Survey, identifier, splits
from students.nnunet.job import MODEL, PRESETS, Job, Places
from students.nnunet.planning import FINGERPRINT, plans_file
from students.nnunet.training import Trained, agreement
from students.origins import NnunetRecord
from students.spec import HistoryPoint, NetworkPlan, NnunetSpec, StudentCard

_POINTS = 100
"""Of the history that a card keeps."""

_OWN_KEYS = ("dataset", "samdistill", "overwrite_image_reader_writer")


def pack(trained: Trained, job: Job, found: Survey, places: Places) -> None:
    """Write the student: nnU-Net's files, weights, and last the card; the work folder is then of no use."""
    folder = places.folder / MODEL
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    content = {key: value for key, value in trained.trainer.dataset_json.items() if key not in _OWN_KEYS} | {"file_ending": ".nii.gz"}
    plans = json.loads(plans_file(job, places).read_text(encoding="utf-8"))
    plans |= {"image_reader_writer": "SimpleITKIO", "dataset_name": f"Dataset001_{job.spec.name}"}
    for name, written in (("dataset.json", content), ("plans.json", plans)):
        (folder / name).write_text(json.dumps(written, indent=1) + "\n", encoding="utf-8")
    for name in (FINGERPRINT, "splits_final.json"):
        shutil.copyfile(places.preprocessed / name, folder / name)
    network = trained.trainer.network
    save_student(places.folder, _card(trained, job, found), dict(network.named_parameters()))


def _card(trained: Trained, job: Job, found: Survey) -> StudentCard:
    trainer, history = trained.trainer, _history(trained.trainer)
    held_out = _held_out(trained, job, found)
    steps = trainer.current_epoch * trainer.num_iterations_per_epoch
    return StudentCard(
        name=job.spec.name,
        spec=job.spec,
        plan=_plan(trained),
        classes=job.classes,
        label_set=job.label_set,
        training_cases=tuple(case.id for case in found.kept if case.id not in held_out),
        validation_cases=tuple(case.id for case in found.kept if case.id in held_out),
        training_patients=tuple(sorted({case.patient for case in job.cases})),
        fingerprint=job.fingerprint,
        parameters=sum(weights.numel() for weights in trainer.network.parameters()),
        steps=steps,
        seconds=round(trainer.seconds, 3),
        agreement=agreement(trainer),
        stopped="steps" if trainer.current_epoch >= trainer.num_epochs else "budget",
        history=history,
        nnunet=_record(trained, job, found),
        channels=job.named_channels,
        spacing_known=job.spacing_known,
    )


def _held_out(trained: Trained, job: Job, found: Survey) -> set[str]:
    if trained.fold == "all":
        return set()
    names = set(splits(found.kept)[int(trained.fold)]["val"])
    return {case.id for case in job.cases if identifier(case.id) in names}


def _record(trained: Trained, job: Job, found: Survey) -> NnunetRecord:
    trainer, asked = trained.trainer, job.spec.nnunet or NnunetSpec()
    axes: tuple[int, ...] = trainer.inference_allowed_mirroring_axes or ()
    # Mirroring asks the net 4 or 8 times; the reduced preset is for machines where that is too dear.
    mirrored = () if asked.preset == "reduced" else tuple(axes)
    return NnunetRecord(
        version=version("nnunetv2"),
        planner=PRESETS[asked.preset].planner,
        configuration=trained.configuration,
        epochs=trainer.current_epoch,
        epochs_asked=trainer.num_epochs,
        iterations=trainer.num_iterations_per_epoch,
        fold=trained.fold,
        mirror=asked.mirror,
        mirrored_axes=mirrored,
        flat=job.flat,
        dropped_cases=found.dropped,
        ignored=found.ignored,
        normalisation=tuple(trainer.configuration_manager.normalization_schemes),
    )


def _history(trainer: Any) -> tuple[HistoryPoint, ...]:
    """Return what nnU-Net noted of its epochs, thinned out evenly."""
    noted = {name: trainer.logger.get_value(name, step=None) for name in ("train_losses", "lrs", "mean_fg_dice", "epoch_end_timestamps")}
    starts, seconds, points = trainer.logger.get_value("epoch_start_timestamps", step=None), 0.0, []
    for epoch, (loss, lr, dice, end) in enumerate(zip(*noted.values(), strict=True), start=1):
        seconds += end - starts[epoch - 1]
        points.append(
            HistoryPoint(
                step=epoch * trainer.num_iterations_per_epoch,
                seconds=round(float(seconds), 3),
                loss=_known(loss),
                lr=float(lr),
                agreement=None if trainer.fold == "all" else _known(dice),
            )
        )
    return tuple(points[:: max(1, -(-len(points) // _POINTS))])


def _known(value: float) -> float | None:
    return float(value) if np.isfinite(value) else None


def _plan(trained: Trained) -> NetworkPlan:
    """Return nnU-Net's plan in our words, axes in our order."""
    trainer, configuration = trained.trainer, trained.trainer.configuration_manager
    back: list[int] = trainer.plans_manager.transpose_backward
    network = configuration.network_arch_init_kwargs
    flat = len(configuration.patch_size) == 2
    between = trainer.plans_manager.original_median_spacing_after_transp[0]
    inner = [0, 1] if flat else back
    return NetworkPlan(
        dimensions="2d" if flat else "3d",
        in_channels=trainer.num_input_channels,
        outputs=trainer.label_manager.num_segmentation_heads,
        filters=tuple(network["features_per_stage"]),
        strides=tuple(tuple(each[axis] for axis in inner) for each in network["strides"]),
        kernels=tuple(tuple(each[axis] for axis in inner) for each in network["kernel_sizes"]),
        patch_zyx=_ordered([1, *configuration.patch_size] if flat else configuration.patch_size, back),
        spacing_zyx_mm=_ordered([between, *configuration.spacing] if flat else configuration.spacing, back),
        batch=configuration.batch_size,
    )


def _ordered(values: Sequence[Any], back: Sequence[int]) -> tuple[Any, Any, Any]:
    z, y, x = (values[axis] for axis in back)
    return z, y, x
