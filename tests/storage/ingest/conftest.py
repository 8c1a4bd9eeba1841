"""Writers of good and bad source files, and an archive to bring them into."""

import gzip
import json
from collections.abc import Callable, Iterator
from pathlib import Path

import nibabel as nib
import numpy as np
import pydicom
import pytest
from PIL import Image
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, generate_uid

from storage import Archive
from storage.ingest import ingest
from storage.ingest.source import quiet_readers

WriteNifti = Callable[..., Path]
WritePrompts = Callable[..., Path]
WriteSlices = Callable[..., list[Path]]


@pytest.fixture
def archive(tmp_path: Path) -> Archive:
    """An empty archive."""
    return Archive.create(str(tmp_path / "archive.zarr"))


@pytest.fixture
def quiet() -> Iterator[None]:
    """The silence in which readers work when a run calls them."""
    with quiet_readers():
        yield


def volume(shape: tuple[int, ...] = (5, 6, 7), seed: int = 0, dtype: str = "int16") -> np.ndarray:
    """Voxels of unequal sides."""
    return np.random.default_rng(seed).integers(0, 200, shape).astype(dtype)


@pytest.fixture
def write_nifti() -> WriteNifti:
    """Write a NIfTI file with values, affine and whatever header fields are named."""

    def write(path: Path, values: np.ndarray | None = None, affine: np.ndarray | None = None, **fields: object) -> Path:
        image = nib.Nifti1Image(volume() if values is None else values, np.diag([0.5, 0.6, 2.0, 1.0]) if affine is None else affine)
        for name, value in fields.items():
            image.header[name] = value
        path.parent.mkdir(parents=True, exist_ok=True)
        nib.save(image, path)
        return path

    return write


@pytest.fixture
def scans(archive: Archive, tmp_path: Path, write_nifti: WriteNifti) -> Archive:
    """A volume of 8 slices, 10 rows and 12 columns, and a picture of 20 rows and 30 columns, to be prompted."""
    write_nifti(tmp_path / "in" / "scan.nii.gz", np.random.default_rng(0).integers(0, 99, (12, 10, 8)).astype(np.int16))
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (20, 30)).astype(np.uint8)).save(tmp_path / "in" / "picture.png")
    ingest(archive, tmp_path / "in")
    return archive


@pytest.fixture
def write_prompts() -> WritePrompts:
    """Write rows as JSON, or text as it is, into a file of prompts."""

    def write(folder: Path, rows: object, name: str = "prompts.json") -> Path:
        path = folder / name
        path.write_text(rows if isinstance(rows, str) else json.dumps(rows), encoding="utf-8")
        return path

    return write


@pytest.fixture
def write_slices() -> WriteSlices:
    """Write one DICOM file per position along z."""
    return dicom_slices


def dicom_slices(
    folder: Path,
    positions: list[float],
    *,
    values: np.ndarray | None = None,
    first_file: int = 0,
    spacing: tuple[float, float] = (0.7, 0.8),
    orientation: tuple[float, ...] = (1, 0, 0, 0, 1, 0),
    series: str | None = "1.2.3.4",
    **attributes: object,
) -> list[Path]:
    """Write CT slices at these millimetres along z; attributes set to None are left out."""
    folder.mkdir(parents=True, exist_ok=True)
    pixels = volume((len(positions), 6, 5), dtype="uint16") if values is None else values
    paths = []
    for n, place in enumerate(positions):
        header = pydicom.Dataset()
        header.file_meta = pydicom.dataset.FileMetaDataset()
        header.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
        header.file_meta.MediaStorageSOPClassUID = CTImageStorage
        header.file_meta.MediaStorageSOPInstanceUID = generate_uid()
        plane = pixels[n]
        standard: dict[str, object] = {
            "SOPClassUID": CTImageStorage,
            "SOPInstanceUID": header.file_meta.MediaStorageSOPInstanceUID,
            "SeriesInstanceUID": series or "",
            "Modality": "CT",
            "PatientID": "P1",
            "SliceThickness": 3.0,
            "ImagePositionPatient": [1.0, 2.0, place],
            "ImageOrientationPatient": list(orientation),
            "PixelSpacing": list(spacing),
            "RescaleSlope": 1,
            "RescaleIntercept": -1024,
            "SamplesPerPixel": 1,
            "PhotometricInterpretation": "MONOCHROME2",
            "Rows": plane.shape[0],
            "Columns": plane.shape[1],
            "BitsAllocated": 8 * plane.dtype.itemsize,
            "BitsStored": 8 * plane.dtype.itemsize,
            "HighBit": 8 * plane.dtype.itemsize - 1,
            "PixelRepresentation": int(plane.dtype.kind == "i"),
        }
        for name, value in (standard | attributes).items():
            if value is not None:
                setattr(header, name, value)
        header.PixelData = plane.tobytes()
        path = folder / f"slice{first_file + n:03}.dcm"
        header.save_as(path, enforce_file_format=True)
        paths.append(path)
    return paths


BAD_FILES: dict[str, str] = {
    "zero.nii.gz": "zero-bytes",
    "zero.nii": "zero-bytes",
    "cut.nii.gz": "truncated-gzip",
    "cut_late.nii.gz": "truncated-gzip",
    "flipped_bit.nii.gz": "corrupt-gzip",
    "cut.nii": "truncated-file",
    "text.nii.gz": "not-nifti",
    "text_in_gzip.nii.gz": "not-nifti",
    "nan.nii.gz": "nan-volume",
    "infinite.nii.gz": "nan-volume",
    "time.nii.gz": "time-series",
    "flat.nii.gz": "empty-volume",
    "no_spacing.nii.gz": "bad-spacing",
    "negative_spacing.nii.gz": "bad-spacing",
    "no_place.nii.gz": "bad-affine",
    "microns.nii.gz": "unsupported-units",
    "complex.nii.gz": "unsupported-dtype",
    "zero.png": "zero-bytes",
    "cut.png": "truncated-image",
    "cut.jpg": "truncated-image",
    "text.png": "not-an-image-file",
    "text.tif": "not-an-image-file",
    "flat.png": "empty-volume",
}
"""File name -> the slug it is refused with."""

GOOD_FILES = ("good1.nii.gz", "good2.nii", "good3.png", "good4.jpg", "good5.tif", "sub/good6.nii.gz")


@pytest.fixture
def bad_corpus(tmp_path: Path, write_nifti: WriteNifti) -> Path:
    """A folder with every bad file of BAD_FILES between good ones."""
    folder = tmp_path / "corpus"
    for n, name in enumerate(GOOD_FILES):
        if ".nii" in name:
            write_nifti(folder / name, volume(seed=n))
        else:
            Image.fromarray(volume((30, 40), seed=n, dtype="uint8")).save(folder / name)
    _bad_nifti(folder, write_nifti)
    _bad_pictures(folder)
    assert {path.name for path in folder.iterdir() if path.is_file()} == {*BAD_FILES, *(name for name in GOOD_FILES if "/" not in name)}
    return folder


def _bad_nifti(folder: Path, write_nifti: WriteNifti) -> None:
    whole = write_nifti(folder / "cut.nii.gz", volume((20, 20, 20))).read_bytes()
    (folder / "cut.nii.gz").write_bytes(whole[: len(whole) // 2])
    (folder / "cut_late.nii.gz").write_bytes(whole[:-3])
    (folder / "flipped_bit.nii.gz").write_bytes(whole[:-8] + bytes([whole[-8] ^ 1]) + whole[-7:])
    plain = write_nifti(folder / "cut.nii", volume((20, 20, 20))).read_bytes()
    (folder / "cut.nii").write_bytes(plain[: len(plain) // 2])
    for name in ("zero.nii.gz", "zero.nii", "zero.png"):
        (folder / name).write_bytes(b"")
    (folder / "text.nii.gz").write_text("please find the scan attached\n" * 40)
    (folder / "text_in_gzip.nii.gz").write_bytes(gzip.compress(b"please find the scan attached\n" * 40))
    for name, value in (("nan.nii.gz", np.nan), ("infinite.nii.gz", np.inf)):
        values = volume(dtype="float32")
        values[1, 2, 3] = value
        write_nifti(folder / name, values)
    write_nifti(folder / "time.nii.gz", volume((4, 5, 6, 3)))
    write_nifti(folder / "flat.nii.gz", np.full((4, 5, 6), 7, np.int16))
    write_nifti(folder / "complex.nii.gz", volume().astype(np.complex64))
    write_nifti(folder / "microns.nii.gz", xyzt_units=3)
    _overwrite(write_nifti(folder / "no_place.nii.gz"), _SROW_X_BYTE, 0.0, 0.0, 0.0, 0.0)
    _overwrite(write_nifti(folder / "no_spacing.nii.gz"), _PIXDIM_3_BYTE, 0.0)
    _overwrite(write_nifti(folder / "negative_spacing.nii.gz"), _PIXDIM_3_BYTE, -2.0)


_PIXDIM_3_BYTE, _SROW_X_BYTE = 88, 280


def _overwrite(path: Path, start: int, *numbers: float) -> None:
    """Change a header field behind nibabel's back, which would repair it."""
    content = bytearray(gzip.decompress(path.read_bytes()))
    content[start : start + 4 * len(numbers)] = np.array(numbers, dtype=np.float32).tobytes()
    path.write_bytes(gzip.compress(bytes(content)))


def _bad_pictures(folder: Path) -> None:
    for name in ("cut.png", "cut.jpg"):
        Image.fromarray(volume((60, 70), dtype="uint8")).save(folder / name)
        whole = (folder / name).read_bytes()
        (folder / name).write_bytes(whole[: len(whole) // 2])
    (folder / "text.png").write_text("no picture")
    (folder / "text.tif").write_text("no picture")
    Image.new("L", (8, 9), 3).save(folder / "flat.png")


@pytest.fixture
def bad_files() -> dict[str, str]:
    """File name -> slug, of every bad file in ``bad_corpus``."""
    return BAD_FILES
