"""What came in as a picture goes out as one, its labels lie on it pixel by pixel, and they can be read in again."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from flows.errors import StageError
from flows.imports import export_files
from storage import IGNORE, Archive, ClassInfo, Geometry, LabelHistory
from storage.export.nifti import write_nifti
from storage.export.png import export_png_image, export_png_labels, is_png_export
from storage.ingest import import_labels, ingest

CLASSES = (ClassInfo(id=1, name="cell"),)
RNG = np.random.default_rng(0)
PICTURES = {
    "colour": RNG.integers(0, 255, (30, 40, 3), dtype=np.uint8),
    "grey": RNG.integers(0, 255, (30, 40), dtype=np.uint8),
    "deep": RNG.integers(0, 65535, (30, 40), dtype=np.uint16),
}


@pytest.fixture
def archive(tmp_path: Path) -> Archive:
    """Return three pictures and a volume, each with a square of class 1 and a corner that is ignored."""
    (tmp_path / "scans").mkdir()
    for name, pixels in PICTURES.items():
        Image.fromarray(pixels).save(tmp_path / "scans" / f"{name}.png")
    affine = ((1.0, 0.0, 0.0, 0.0), (0.0, 1.0, 0.0, 0.0), (0.0, 0.0, 1.0, 0.0), (0.0, 0.0, 0.0, 1.0))
    write_nifti(
        RNG.integers(0, 9, (3, 30, 40)).astype(np.int16),
        Geometry(spacing_zyx_mm=(1, 1, 1), affine=affine),
        tmp_path / "scans" / "volume.nii.gz",
    )
    made = Archive.create(str(tmp_path / "a.zarr"))
    ingest(made, tmp_path / "scans")
    for record in made.cases():
        ids = np.zeros(record.shape_czyx[1:], np.uint8)
        ids[:, 5:10, 6:20], ids[:, :2, :2] = 1, IGNORE
        made[record.id].write_labels(LabelHistory(label_set="gold", classes=CLASSES, made_by="test"), ids)
    return made


def exported(archive: Archive, out: Path, *, nifti: bool = False) -> set[str]:
    export_files(archive.url, out, label_set="gold", part=None, images=True, catalog=None, nifti=nifti)
    return {str(path.relative_to(out)) for path in out.rglob("*.*")}


def test_pictures_go_out_as_they_came_with_labels_of_the_same_height_and_width(archive: Archive, tmp_path: Path) -> None:
    out = tmp_path / "out"
    names = {f"{folder}/{name}.png" for folder in ("labels", "images") for name in PICTURES}
    assert exported(archive, out) == names | {"labels/volume.nii.gz", "images/volume.nii.gz"}
    for name, pixels in PICTURES.items():
        assert np.array_equal(np.asarray(Image.open(out / "images" / f"{name}.png")), pixels)
        with Image.open(out / "labels" / f"{name}.png") as labels:
            assert labels.mode == "L", "one value per pixel, also where the picture has colours"
            assert np.array_equal(np.asarray(labels), archive[name].labels("gold").read()[0])


def test_exported_labels_of_pictures_can_be_read_in_again(archive: Archive, tmp_path: Path) -> None:
    exported(archive, tmp_path / "out")
    assert import_labels(archive, tmp_path / "out" / "labels", classes=CLASSES, label_set="again").added == 4
    for record in archive.cases():
        assert np.array_equal(archive[record.id].labels("again").read(), archive[record.id].labels("gold").read())


def test_all_can_be_nifti_where_that_is_asked_for(archive: Archive, tmp_path: Path) -> None:
    assert {Path(name).suffix for name in exported(archive, tmp_path / "out", nifti=True)} == {".gz"}


def test_a_picture_whose_pixels_have_a_known_size_keeps_it(tmp_path: Path) -> None:
    import tifffile

    (tmp_path / "scans").mkdir()
    tifffile.imwrite(
        tmp_path / "scans" / "a.tif", PICTURES["grey"], imagej=True, resolution=(2, 2), metadata={"unit": "mm", "spacing": 1.0}
    )
    archive = Archive.create(str(tmp_path / "a.zarr"))
    ingest(archive, tmp_path / "scans")
    assert archive["a"].record.geometry.spacing_known
    archive["a"].write_labels(LabelHistory(label_set="gold", classes=CLASSES, made_by="test"), np.zeros((1, 30, 40), np.uint8))
    assert exported(archive, tmp_path / "out") == {"labels/a.nii.gz", "images/a.nii.gz"}


def test_an_export_replaces_its_own_pictures_and_nobody_elses(archive: Archive, tmp_path: Path) -> None:
    out = tmp_path / "out"
    exported(archive, out)
    exported(archive, out)
    Image.fromarray(PICTURES["grey"]).save(out / "labels" / "grey.png")
    before = (out / "labels" / "grey.png").read_bytes()
    with pytest.raises(StageError, match=r"grey\.png would be lost: no 'samdistill export' wrote it"):
        exported(archive, out)
    assert (out / "labels" / "grey.png").read_bytes() == before


def test_an_export_in_the_other_form_takes_the_place_of_the_first_and_of_nobody_elses_files(archive: Archive, tmp_path: Path) -> None:
    out = tmp_path / "out"
    pictures, volumes = exported(archive, out), exported(archive, out, nifti=True)
    assert {Path(name).suffix for name in volumes} == {".gz"}
    assert exported(archive, out) == pictures
    scan, drawn = out / "images" / "grey.nii.gz", out / "labels" / "deep.nii.gz"
    geometry = archive["grey"].record.geometry
    for theirs in (scan, drawn):
        write_nifti(np.ones((1, 30, 40), np.uint8), geometry, theirs)
    assert exported(archive, out) == pictures | {"images/grey.nii.gz", "labels/deep.nii.gz"}


def test_an_export_of_labels_alone_leaves_earlier_images_and_other_cases(archive: Archive, tmp_path: Path) -> None:
    out = tmp_path / "out"
    exported(archive, out, nifti=True)
    archive.catalog.set_part({"grey": "test"})
    export_files(archive.url, out, label_set="gold", part="test", images=False, catalog=None)
    assert {path.name for path in (out / "labels").iterdir()} == {"colour.nii.gz", "deep.nii.gz", "grey.png", "volume.nii.gz"}
    assert {path.suffix for path in (out / "images").iterdir()} == {".gz"}


def test_what_is_no_png_is_nobodys_export(archive: Archive, tmp_path: Path) -> None:
    export_png_image(archive["colour"], tmp_path / "sub" / "c.png")
    export_png_labels(archive["colour"], "gold", tmp_path / "l.png")
    (tmp_path / "text.png").write_text("what an expert wrote", encoding="utf-8")
    Image.fromarray(PICTURES["grey"]).save(tmp_path / "x.jpg")
    told = {name: is_png_export(tmp_path / name) for name in ("sub/c.png", "l.png", "text.png", "x.jpg", "missing.png")}
    assert told == {"sub/c.png": True, "l.png": True, "text.png": False, "x.jpg": False, "missing.png": False}
