"""A teacher of random weights that is small enough for every test."""

import runpy
from pathlib import Path

import pytest
import torch

from distill.teachers.base import TeacherProfile
from distill.teachers.conv_encoder import ConvSamConfig, build_conv_sam
from distill.teachers.sam import SamTeacher

SMALL = ConvSamConfig(
    image_size=64, widths=(8, 8, 16, 16, 16), depths=(0, 1, 1, 1, 1), embed_dim=32, decoder_heads=4, decoder_mlp=32, mask_channels=8
)


def small_teacher(seed: int = 0) -> SamTeacher:
    """Build the teacher; equal seeds give equal weights."""
    torch.manual_seed(seed)
    return SamTeacher(build_conv_sam(SMALL), TeacherProfile(name="samdistill-conv", image_size=64), f"random-{seed}")


@pytest.fixture
def teacher() -> SamTeacher:
    """Return a random small teacher."""
    return small_teacher()


@pytest.fixture
def checkpoint(tmp_path: Path) -> str:
    """Write a random small teacher to a file, and return its path."""
    return str(runpy.run_path(str(Path(__file__).with_name("small_archive.py")))["write_checkpoint"](tmp_path))  # tests are no package
