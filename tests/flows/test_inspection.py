"""What inspect says of checkpoints, of folders that are none of what it knows, and of names that are nearly known."""

import json
import re
import runpy
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from rich.console import Console

from distill import engine
from distill.engine import LabelSummary
from flows import cli, console, showcase
from flows.drawing import draw
from flows.errors import FlowError
from flows.inspection import Inspection, Refusal, inspect_path
from flows.recipe_file import load_recipe
from storage import Archive, CaseRecord, Geometry, Prompt

weights: Callable[..., dict[str, torch.Tensor]] = runpy.run_path(str(Path(__file__).parents[1] / "distill" / "small_sam.py"))["weights"]


def facts_of(path: Path | str, capsys: pytest.CaptureFixture[str]) -> dict[str, object]:
    with pytest.raises(SystemExit) as ended:
        cli.main(["inspect", str(path), "--json"])
    assert not ended.value.code
    facts: dict[str, object] = json.loads(capsys.readouterr().out)["facts"]
    return facts


def test_numbers_are_numbers_for_programs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    torch.save(weights(), tmp_path / "small.pth")
    facts = facts_of(tmp_path / "small.pth", capsys)
    wanted = {"width": 32, "depth": 3, "heads": 2, "window": 4, "global blocks": [1], "decoder width": 32, "mask tokens": 4}
    assert wanted.items() <= facts.items()
    assert facts["can be used"] == "yes"


def test_numbers_of_a_header_are_numbers_too(capsys: pytest.CaptureFixture[str]) -> None:
    facts = facts_of("bundled", capsys)
    assert facts["logit_shift"] == 0.25
    assert isinstance(facts["config"], dict)
    assert facts["config"]["widths"] == [32, 48, 96, 160, 192]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (
            lambda t: t.pop("mask_decoder.iou_token.weight"),
            r"no: bad\.pth does not fit its family .*1 tensor missing: mask_decoder\.iou_token",
        ),
        (lambda t: t["image_encoder.neck.0.weight"].fill_(float("nan")), r"no: bad\.pth holds NaN or infinity in 1 tensor"),
    ],
    ids=["a missing tensor", "not a number"],
)
def test_a_file_that_cannot_be_loaded_is_said_to_be_unusable(
    change: Callable[[dict[str, torch.Tensor]], object], said: str, tmp_path: Path
) -> None:
    tensors = weights()
    change(tensors)
    torch.save(tensors, tmp_path / "bad.pth")
    assert re.match(said, str(inspect_path(str(tmp_path / "bad.pth")).facts["can be used"]))


def test_what_is_left_out_of_a_file_is_said_with_what_that_means(tmp_path: Path) -> None:
    saved = {"model": weights(), "optimizer": torch.optim.AdamW([torch.nn.Parameter(torch.ones(2))]), "epoch": 3}
    torch.save(saved, tmp_path / "training.pth")
    facts = inspect_path(str(tmp_path / "training.pth")).facts
    assert facts["left out"] == "optimizer, epoch (saved beside the weights, not needed to predict)"
    assert "torch.optim.adamw.AdamW" in str(facts["pickled classes not read"])
    assert "which never happens; the weights are whole without" in str(facts["pickled classes not read"])


def test_a_folder_is_not_taken_for_an_archive_and_what_is_in_it_is_named(tmp_path: Path) -> None:
    (tmp_path / "sam.pth").touch()
    (tmp_path / "best").mkdir()
    (tmp_path / "best" / "student.json").touch()
    with pytest.raises(
        FlowError, match=r"neither an archive nor a student's\. It holds checkpoint files: sam\.pth; students: best\."
    ) as caught:
        inspect_path(str(tmp_path))
    assert "ingest" not in str(caught.value)


def test_an_empty_folder_is_called_one_without_anything_known(tmp_path: Path) -> None:
    with pytest.raises(FlowError, match=r"It holds no checkpoint file, archive or student, but nothing\. Give the path of such a thing\."):
        inspect_path(str(tmp_path))


@pytest.mark.parametrize("name", ["vit-b", "ViT_B", "sam_vit_b", "vit_b.pth"])
def test_a_name_that_is_nearly_an_official_one_is_answered_with_how_to_bring_it(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(FlowError, match=r"Did you mean the official checkpoint 'vit_b'\? 'samdistill fetch vit_b' brings it"):
        inspect_path(name)


def test_an_official_name_whose_file_is_not_here_is_answered_with_how_to_bring_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("SAMDISTILL_CACHE", str(tmp_path))
    with pytest.raises(SystemExit):
        cli.main(["inspect", "vit_b"])
    assert "'samdistill fetch vit_b' brings it" in capsys.readouterr().err


def test_the_path_above_a_table_is_not_broken(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(console, "OUT", Console(width=30))
    path = "checkpoint /a/folder with blanks/and a long name/of-some-weights.pth"
    console.show_table(path, ("what", "value"), [("a", "b")])
    assert path in capsys.readouterr().out.splitlines()


def test_rows_about_cases_that_are_not_there_are_one_row_of_the_table_and_all_in_json(capsys: pytest.CaptureFixture[str]) -> None:
    others = tuple(
        Refusal(what=f"prompts.json {n}", reason="unknown-case", message=f"row {n}: the archive holds no case 'c{n}'.") for n in range(787)
    )
    bad = Refusal(what="scan.nii", reason="truncated-file", message="cut off")
    found = Inspection(kind="archive", path="a.zarr", facts={}, refused=(*others, bad))
    showcase.show_inspection(found, as_json=False)
    said = capsys.readouterr().out
    assert said.count("unknown-case") == 1
    assert "unknown (787 files" in said
    assert "truncated-file" in said
    assert "without a result: 788 (all with --json)" in said
    showcase.show_inspection(found, as_json=True)
    assert capsys.readouterr().out.count("unknown-case") == 787


def test_prompts_across_another_axis_than_their_class_are_counted_and_named(
    tmp_path: Path, write_recipe: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    archive = Archive.create(str(tmp_path / "a.zarr"))
    geometry = Geometry(spacing_zyx_mm=(1, 1, 1), affine=((1, 0, 0, 0), (0, 1, 0, 0), (0, 0, 1, 0), (0, 0, 0, 1)))
    for name in ("one", "two"):
        archive.add_case(
            CaseRecord(id=name, patient=name, shape_czyx=(1, 4, 5, 6), dtype="int16", geometry=geometry), np.zeros((1, 4, 5, 6), np.int16)
        )
    box = Prompt(case="one", class_id=1, kind="box", slice=1, box_xyxy_px=(0, 0, 2, 2))
    archive.catalog.add_prompts([box, replace(box, axis="y"), replace(box, axis="y", slice=2), replace(box, case="two", axis="x")])
    assert inspect_path(archive.url).facts["prompts not asked"] == "2 of one, across another axis than their class"
    summary = LabelSummary(
        label_set="t", done=1, skipped=0, without_prompts=(), set_aside={"one": 2}, quarantined=(), unfinished=0, slices=1, seconds=1.0
    )
    recipe = load_recipe(write_recipe("archive: ./a.zarr\nclasses: {1: {name: organ}}\n"))
    monkeypatch.setattr(engine, "label_archive", lambda *_, **__: summary)
    result = draw(archive, recipe, ["one"], lambda *_: None)
    assert result.tally == {"prompts not asked, across another axis than their class is asked along": 2}
    assert "WARNING: 2 prompts of one were not asked" in result.note
