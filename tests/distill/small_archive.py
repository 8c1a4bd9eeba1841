"""Small archives of noise and a small teacher in a file, for tests of labelling; read with ``runpy``, as tests are no package."""

import threading
from pathlib import Path

import numpy as np
import torch

from distill.engine import LabelPlan
from distill.teachers.conv_encoder import ConvSamConfig, build_conv_sam
from distill.teachers.pretrain import PretrainPlan, write_teacher
from distill.wavefront import AskSettings
from storage import Archive, CaseRecord, ClassInfo, Geometry, Prompt

IDENTITY = ((1.0, 0.0, 0.0, 0.0), (0.0, 1.0, 0.0, 0.0), (0.0, 0.0, 1.0, 0.0), (0.0, 0.0, 0.0, 1.0))
A = ClassInfo(id=1, name="a")
SMALL = ConvSamConfig(
    image_size=64, widths=(8, 8, 16, 16, 16), depths=(0, 1, 1, 1, 1), embed_dim=32, decoder_heads=4, decoder_mlp=32, mask_channels=8
)
STAGE = "label:teacher/r1"


def write_checkpoint(folder: Path) -> str:
    """Write a random small teacher to a file, and return its path."""
    torch.manual_seed(0)
    path = folder / "small.safetensors"
    write_teacher(path, build_conv_sam(SMALL), SMALL, PretrainPlan(data=folder, out=path), 0)
    return str(path)


def archive_of(folder: Path, count: int, *, depth: int = 8) -> Archive:
    """Make an archive of volumes of three depths and four heights, each with two boxes of class 1."""
    folder.mkdir(exist_ok=True)
    archive = Archive.create(str(folder / "a.zarr"))
    rng = np.random.default_rng(0)
    prompts = []
    for n in range(count):
        shape = (1, depth + n % 3, 20 + n % 4, 26)
        record = CaseRecord(
            id=f"case{n:02}",
            patient=f"p{n}",
            shape_czyx=shape,
            dtype="int16",
            modality="MR",
            geometry=Geometry(spacing_zyx_mm=(1.0, 1.0, 1.0), affine=IDENTITY),
            fingerprint=f"f{n}",
        )
        archive.add_case(record, rng.integers(0, 900, shape, dtype=np.int16))
        prompts += [Prompt(case=record.id, class_id=1, kind="box", slice=z, box_xyxy_px=(5, 4, 18, 15)) for z in (1, 5)]
    archive.catalog.add_prompts(prompts)
    return archive


def plan_for(checkpoint: str, **changes: object) -> LabelPlan:
    """Return a plan for class 1 on a CPU, with two boxes per question."""
    return LabelPlan(**({"classes": (A,), "teacher": checkpoint, "device": "cpu", "ask": AskSettings(boxes=2)} | changes))  # type: ignore[arg-type]


def left_behind() -> list[str]:
    """Return the names of threads that a labelling run started and did not end; threads that stay for the next run are none of them."""
    own = ("read", "write", "ask-", "heartbeat")
    return [thread.name for thread in threading.enumerate() if thread.name.removeprefix("samdistill-").startswith(own)]
