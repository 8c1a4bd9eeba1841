"""Sparse labels become weak prompts."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from storage import Archive, rle
from storage.ingest import import_prompts
from storage.ingest.weak_convert import Converter

WriteNifti = Callable[..., Path]
SHAPE_IJK = (12, 10, 8)


def test_sparse_labels_become_masks_and_tight_boxes_of_the_drawn_slices(scans: Archive, tmp_path: Path, write_nifti: WriteNifti) -> None:
    labels = np.zeros(SHAPE_IJK, np.uint8)
    labels[3:7, 2:9, 1] = 1
    labels[4:6, 3:5, 6] = 2
    write_nifti(tmp_path / "sparse" / "scan.nii.gz", labels)
    write_nifti(tmp_path / "sparse" / "stranger.nii.gz", labels)
    summary = import_prompts(scans, tmp_path / "sparse")
    assert (summary.added, summary.reasons) == (4, {"unknown-case": 1})
    boxes = {(p.class_id, p.slice): p.box_xyxy_px for p in scans.catalog.prompts("scan") if p.kind == "box"}
    assert boxes == {(1, 1): (3, 2, 7, 9), (2, 6): (4, 3, 6, 5)}
    masks = {p.class_id: rle.decode(p.mask_rle, (10, 12)) for p in scans.catalog.prompts("scan") if p.kind == "mask"}
    assert np.array_equal(masks[1], labels[:, :, 1].T == 1)


def test_sparse_labels_drawn_across_another_axis_are_read_across_it(scans: Archive, tmp_path: Path, write_nifti: WriteNifti) -> None:
    labels = np.zeros(SHAPE_IJK, np.uint8)
    labels[5, 2:9, 1:7] = 1
    import_prompts(scans, write_nifti(tmp_path / "sparse" / "scan.nii.gz", labels))
    assert {(p.axis, p.slice) for p in scans.catalog.prompts("scan")} == {("x", 5)}


def test_a_folder_of_sparse_labels_passes_on_what_a_person_should_know(
    scans: Archive, tmp_path: Path, write_nifti: WriteNifti, monkeypatch: pytest.MonkeyPatch
) -> None:
    labels = np.zeros(SHAPE_IJK, np.uint8)
    labels[2:5, 3:6, 4] = 1
    write_nifti(tmp_path / "sparse" / "scan.nii.gz", labels)
    monkeypatch.setattr(Converter, "notes", lambda _self: ("a word",))
    summary = import_prompts(scans, tmp_path / "sparse")
    assert (summary.added, summary.notes) == (2, ("a word",))


def test_sparse_labels_behind_a_link_are_found_and_hidden_ones_are_not(scans: Archive, tmp_path: Path, write_nifti: WriteNifti) -> None:
    labels = np.zeros(SHAPE_IJK, np.uint8)
    labels[2:5, 3:6, 4] = 1
    write_nifti(tmp_path / "disk" / "scan.nii.gz", labels)
    write_nifti(tmp_path / "sparse" / "._scan.nii.gz", labels)
    (tmp_path / "sparse" / "linked").symlink_to(tmp_path / "disk")
    summary = import_prompts(scans, tmp_path / "sparse")
    assert (summary.added, summary.problems) == (2, 0)
