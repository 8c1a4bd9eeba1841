"""Compiled blocks answer what the others do."""

import copy
import runpy
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from segment_anything.modeling import Sam

from distill.teachers.base import TeacherProfile
from distill.teachers.sam import SamTeacher
from distill.teachers.vit import ImageEncoder, VitSizes

small_sam = SimpleNamespace(**runpy.run_path(str(Path(__file__).with_name("small_sam.py"))))  # tests are no package
SIZES = VitSizes(
    width=32, depth=2, heads=2, image_size=96, patch=16, window=4, global_blocks=(1,), out_channels=16, mlp_ratio=2.0, decoder_mlp=32
)


def encoder() -> ImageEncoder:
    """A network with windows that need padding and a global block, whose relative positions are not zero."""
    torch.manual_seed(0)
    made = ImageEncoder(SIZES)
    for name, value in made.named_parameters():
        if "rel_pos" in name or "pos_embed" in name:
            torch.nn.init.normal_(value, std=0.1)
    return made.eval().requires_grad_(requires_grad=False)


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning")
def test_a_compiled_encoder_answers_the_same_whatever_the_batch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    plain = encoder()
    compiled = copy.deepcopy(plain).prepare(4, compiled=True)
    calls = torch._dynamo.utils.counters["stats"]
    calls.clear()
    with torch.inference_mode():
        for batch in (4, 2, 1, 4):
            pictures = torch.randn(batch, 3, 96, 96, generator=torch.Generator().manual_seed(batch))
            assert torch.allclose(compiled._plain(pictures), plain._plain(pictures), atol=1e-5)
    assert calls["unique_graphs"] > 0  # it was compiled, and not passed on


@pytest.mark.parametrize(("device", "asked"), [("meta", [(8, True)]), ("cpu", [])], ids=["another device", "a CPU"])
def test_a_teacher_has_its_encoder_compiled_where_that_counts(
    device: str, asked: list[tuple[int, bool]], monkeypatch: pytest.MonkeyPatch
) -> None:
    prepared: list[tuple[int, bool]] = []
    monkeypatch.setattr(ImageEncoder, "prepare", lambda _, batch, *, dtype, compiled: prepared.append((batch, compiled)))
    model = Sam(encoder(), small_sam.build(dim=16).prompt_encoder, small_sam.build(dim=16).mask_decoder)
    SamTeacher(model, TeacherProfile(name="sam", image_size=96), "x", device=device, compiled=True)
    assert prepared == asked
