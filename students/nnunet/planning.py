"""nnU-Net's fingerprint, plans and preprocessing, in this process: threads do what nnU-Net starts processes for.

Processes would outlive a parent that is killed, and a scheduler's own process may not start any. Preprocessing is done case by case, so that
a second start takes up where the first one was killed.
"""

import json
import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import contextmanager
from multiprocessing.pool import ThreadPool
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import nnunetv2
import torch
from nnunetv2.experiment_planning.dataset_fingerprint import fingerprint_extractor
from nnunetv2.experiment_planning.experiment_planners.default_experiment_planner import ExperimentPlanner
from nnunetv2.utilities.find_class_by_name import recursive_find_python_class
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

from students.nnunet.dataset import MEASURED, configuration_name
from students.nnunet.job import DATASET, PRESETS, Job, Places
from students.nnunet.reader import soft_labels
from students.nnunet.soft import write_soft
from students.spec import NnunetSpec

FINGERPRINT = "dataset_fingerprint.json"
_AUGMENTING = "nnUNet_n_proc_DA"

READY = "ready"
"""Folder with an empty file for each case that is preprocessed: nnU-Net's own files may be half written."""


class ReducedPlanner(ExperimentPlanner):
    """A net for CPUs: nnU-Net's planning with a tenth of its arithmetic per step and more."""

    def __init__(self, dataset_name_or_id: str, **more: Any) -> None:
        super().__init__(dataset_name_or_id, **(more | {"gpu_memory_target_in_gb": _REDUCED_GB, "plans_name": PRESETS["reduced"].plans}))
        self.UNet_base_num_features = 16
        self.UNet_max_features_3d = 128
        self.UNet_max_features_2d = 128
        self.UNet_blocks_per_stage_encoder = (1, *(2,) * 13)


_REDUCED_GB = 0.25
"""What nnU-Net's planner fits patch and batch into: two patches of about 40 x 56 x 40 voxels with 16 channels."""


def measure(places: Places, workers: int) -> None:
    """Have nnU-Net measure shapes, spacings and intensities."""
    fingerprint_extractor.multiprocessing = SimpleNamespace(get_context=lambda _: SimpleNamespace(Pool=ThreadPool))
    extractor = fingerprint_extractor.DatasetFingerprintExtractor(DATASET, workers)
    extractor.show_progress_bar = False
    for case, files in extractor.dataset.items():
        files["label"] = str(places.raw / MEASURED / f"{case}.json")
    extractor.run(overwrite_existing=False)


def plan(job: Job, places: Places) -> None:
    """Have nnU-Net plan the network, unless it has."""
    preset = PRESETS[_asked(job).preset]
    if plans_file(job, places).is_file():
        return
    with _one_process_at_least():
        _planner(preset.planner)(DATASET).plan_experiment()


def _planner(name: str) -> type[ExperimentPlanner]:
    if name == ReducedPlanner.__name__:
        return ReducedPlanner
    folder = str(Path(nnunetv2.__path__[0]) / "experiment_planning")
    found: type[ExperimentPlanner] = recursive_find_python_class(folder, name, current_module="nnunetv2.experiment_planning")
    return found


@contextmanager
def _one_process_at_least() -> Iterator[None]:
    """Let nnU-Net plan: it takes the number of processes that augment, which may be none, for a number of threads."""
    threads, processes = torch.get_num_threads(), os.environ.get(_AUGMENTING, "0")
    os.environ[_AUGMENTING] = str(max(1, int(processes)))
    try:
        yield
    finally:
        os.environ[_AUGMENTING] = processes
        torch.set_num_threads(threads)


def plans_file(job: Job, places: Places) -> Path:
    """Return where the plans lie."""
    return places.preprocessed / f"{PRESETS[_asked(job).preset].plans}.json"


def preprocess(job: Job, places: Places, progress: Callable[[int], None]) -> None:
    """Have nnU-Net crop, normalise and resample each case that is not ready yet.

    Args:
        job: What is learnt.
        places: Where plans and pointers lie, and the volumes go.
        progress: Called with the number of cases that are ready.
    """
    plans = PlansManager(str(plans_file(job, places)))
    configuration = plans.get_configuration(configuration_name(job, plans.available_configurations))
    content = json.loads((places.raw / "dataset.json").read_text(encoding="utf-8"))
    folder, ready = places.preprocessed / configuration.data_identifier, places.work / READY
    folder.mkdir(parents=True, exist_ok=True)
    ready.mkdir(exist_ok=True)
    preprocessor = configuration.preprocessor_class(verbose=False)

    def one(case: str, files: dict[str, Any]) -> None:
        for left in (f"{case}.b2nd", f"{case}_seg.b2nd", f"{case}.pkl"):
            (folder / left).unlink(missing_ok=True)
        images = [str(places.raw / image) for image in files["images"]]
        preprocessor.run_case_save(str(folder / case), images, str(places.raw / files["label"]), plans, configuration, content)
        if job.spec.learning.needs_probability:
            write_soft(folder / case, soft_labels(places.raw / files["label"], job.classes), plans.transpose_forward)
        (ready / case).touch()

    missing = {case: files for case, files in content["dataset"].items() if not (ready / case).exists()}
    done = len(content["dataset"]) - len(missing)
    with ThreadPoolExecutor(max_workers=_asked(job).workers) as pool:
        for number, finished in enumerate(as_completed([pool.submit(one, *each) for each in missing.items()]), start=1):
            finished.result()
            progress(done + number)


def _asked(job: Job) -> NnunetSpec:
    return job.spec.nnunet or NnunetSpec()
