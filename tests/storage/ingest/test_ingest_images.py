"""Pictures keep their values and lose their metadata."""

from pathlib import Path
from typing import Any

import imagecodecs
import numpy as np
import pytest
import tifffile
from PIL import Image

from storage import Archive
from storage.errors import IngestError
from storage.ingest import ingest
from storage.ingest.images import read_image
from storage.ingest.source import Naming, case_id_from_name

NAMING = Naming(case="a", patient="a")
pytestmark = pytest.mark.usefixtures("quiet")


def random(shape: tuple[int, ...], dtype: str = "uint8") -> np.ndarray:
    return np.random.default_rng(5).integers(0, 250 if dtype == "uint8" else 60000, shape).astype(dtype)


def test_sixteen_bits_stay_sixteen_bits(tmp_path: Path) -> None:
    grey, colour = random((4, 5), "uint16"), random((4, 5, 3), "uint16")
    Image.fromarray(grey).save(tmp_path / "grey.png")
    (tmp_path / "colour.png").write_bytes(imagecodecs.png_encode(colour))
    assert np.array_equal(read_image(tmp_path / "grey.png", NAMING).image_czyx[0, 0], grey)
    assert np.array_equal(read_image(tmp_path / "colour.png", NAMING).image_czyx[:, 0], np.moveaxis(colour, -1, 0))


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "P", "CMYK", "YCbCr"])
def test_every_colour_mode_becomes_three_channels(tmp_path: Path, mode: str) -> None:
    picture = Image.fromarray(random((4, 5, 3))).convert(mode)
    path = tmp_path / ("a.jpg" if mode in ("CMYK", "YCbCr") else "a.png")
    picture.save(path)
    assert read_image(path, NAMING).record.shape_czyx == (3, 1, 4, 5)


@pytest.mark.parametrize("mode", ["1", "L", "LA"])
def test_every_grey_mode_becomes_one_channel(tmp_path: Path, mode: str) -> None:
    Image.fromarray(random((4, 5))).convert(mode).save(tmp_path / "a.png")
    assert read_image(tmp_path / "a.png", NAMING).record.shape_czyx == (1, 1, 4, 5)


def test_alpha_is_dropped_without_touching_the_colours(tmp_path: Path) -> None:
    values = random((4, 5, 4))
    Image.fromarray(values, mode=None).save(tmp_path / "a.png")
    assert np.array_equal(read_image(tmp_path / "a.png", NAMING).image_czyx[:, 0], np.moveaxis(values[..., :3], -1, 0))


def test_a_print_resolution_is_no_spacing(tmp_path: Path) -> None:
    Image.fromarray(random((4, 5))).save(tmp_path / "a.png", dpi=(300, 300))
    geometry = read_image(tmp_path / "a.png", NAMING).record.geometry
    assert (geometry.spacing_known, geometry.spacing_zyx_mm) == (False, (1, 1, 1))


def test_a_photograph_is_turned_upright_and_its_exif_stays_behind(archive: Archive, tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # turn a quarter clockwise
    exif[0x010E] = "Erika Mustermann, left eye"
    (tmp_path / "in").mkdir()
    Image.fromarray(random((20, 30))).save(tmp_path / "in" / "eye.jpg", exif=exif)
    summary = ingest(archive, tmp_path / "in")
    assert archive["eye"].record.shape_czyx == (1, 1, 30, 20)
    assert "upright" in summary.notes[0]
    stored = b"".join(path.read_bytes() for path in tmp_path.rglob("archive*/**/*") if path.is_file())
    assert b"Mustermann" not in stored


@pytest.mark.parametrize(
    ("shape", "options", "expected"),
    [
        pytest.param((4, 5), {}, (1, 1, 4, 5), id="one grey page"),
        pytest.param((3, 4, 5), {"photometric": "minisblack"}, (1, 3, 4, 5), id="pages become slices"),
        pytest.param((4, 5, 3), {"photometric": "rgb"}, (3, 1, 4, 5), id="colour"),
        pytest.param((4, 5, 4), {"photometric": "rgb", "extrasamples": ["unassalpha"]}, (3, 1, 4, 5), id="colour and alpha"),
        pytest.param((6, 2, 4, 5), {"imagej": True, "metadata": {"axes": "ZCYX"}}, (2, 6, 4, 5), id="slices of channels"),
        pytest.param((4, 5), {"compression": "zlib"}, (1, 1, 4, 5), id="compressed"),
    ],
)
def test_tiff_axes_are_sorted_into_c_z_y_x(
    tmp_path: Path, shape: tuple[int, ...], options: dict[str, Any], expected: tuple[int, ...]
) -> None:
    values = random(shape, "uint8" if "photometric" in options else "uint16")
    tifffile.imwrite(tmp_path / "a.tif", values, **options)
    found = read_image(tmp_path / "a.tif", NAMING)
    assert found.record.shape_czyx == expected
    assert found.record.dtype == values.dtype.name


def test_a_stack_over_time_is_refused(tmp_path: Path) -> None:
    tifffile.imwrite(tmp_path / "a.tif", random((3, 4, 5), "uint16"), imagej=True, metadata={"axes": "TYX"})
    with pytest.raises(IngestError) as caught:
        read_image(tmp_path / "a.tif", NAMING)
    assert caught.value.reason == "time-series"


def test_the_metric_spacing_of_a_microscope_is_believed(tmp_path: Path) -> None:
    values = random((3, 4, 5), "uint16")
    tifffile.imwrite(tmp_path / "j.tif", values, imagej=True, resolution=(4, 2), metadata={"axes": "ZYX", "unit": "um", "spacing": 3.0})
    tifffile.imwrite(
        tmp_path / "o.ome.tif", values, metadata={"axes": "ZYX", "PhysicalSizeX": 0.25, "PhysicalSizeY": 0.5, "PhysicalSizeZ": 3.0}
    )
    for name in ("j.tif", "o.ome.tif"):
        geometry = read_image(tmp_path / name, NAMING).record.geometry
        assert geometry.spacing_known
        assert geometry.spacing_zyx_mm == pytest.approx((3e-3, 0.5e-3, 0.25e-3))


@pytest.mark.parametrize(
    ("name", "case"),
    [
        pytest.param("scan.nii.gz", "scan", id="double ending"),
        pytest.param("SC-HF-I-01-IM-0001-0048.png", "SC-HF-I-01-IM-0001-0048", id="hyphens stay"),
        pytest.param("left eye (1).JPG", "left_eye__1_", id="what folders cannot hold"),
        pytest.param("v1.2.tif", "v1.2", id="dots stay"),
    ],
)
def test_case_ids_come_from_file_names(name: str, case: str) -> None:
    assert case_id_from_name(name) == case


def test_real_pictures_of_every_kind_go_in(archive: Archive, real_data: Path) -> None:
    assert ingest(archive, real_data / "fundus", exclude=["*HO.png"]).added == 14
    assert ingest(archive, real_data / "organ_slices" / "images").added == 5
    assert archive["Image_01L"].record.shape_czyx == (3, 1, 960, 999)
