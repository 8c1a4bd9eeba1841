"""Read NIfTI files with their geometry intact.

The affine that nibabel computes is kept as it is (float64), and the numeric header fields that it came from are kept
beside it, so that an export writes the same header again. The header is judged *before* nibabel repairs it: it turns a
voxel size of zero into one millimetre without a word.
"""

import gzip
import io
import math
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import nibabel as nib
import numpy as np
from jaxtyping import Shaped
from nibabel.arrayproxy import ArrayProxy
from nibabel.filebasedimages import ImageFileError
from nibabel.spatialimages import HeaderDataError

from storage.case import Geometry
from storage.errors import IngestError
from storage.ingest.source import Naming, SourceCase, check_not_empty, finish_case, native_order

_NIFTI1_BYTES = 348
_NIFTI2_BYTES = 540
_VECTOR_LIMIT = 16
"""More components than this in the fifth dimension are measurements over something, not the channels of an image."""
_UNITS = {0: "unknown", 1: "metre", 2: "millimetre", 3: "micrometre"}

NiftiHeader = nib.Nifti1Header | nib.Nifti2Header


def read_nifti(path: Path, naming: Naming, volumes: int = 1) -> SourceCase:
    """Read one NIfTI file as a case.

    Args:
        path: The file.
        naming: What the case is called.
        volumes: So many along the fourth dimension are channels of one scan; any other number above 1 is a time series.

    Raises:
        IngestError: with the slug ``zero-bytes``, ``truncated-gzip``, ``truncated-file``, ``not-nifti``, ``bad-spacing``,
            ``bad-affine``, ``unsupported-units``, ``time-series``, ``not-a-volume``, ``nan-volume``, ``empty-volume``,
            ``unsupported-dtype`` or ``unreadable``.
    """
    loaded = _load(path, volumes)
    geometry = Geometry(
        spacing_zyx_mm=_spacing_zyx_mm(loaded.header, path.name),
        affine=_rows(loaded.affine),
        nifti=_header_fields(loaded.header),
    )
    notes = _contradictions(loaded.affine, geometry.spacing_zyx_mm, path.name)
    return finish_case(loaded.voxels_czyx, geometry, naming, notes=notes)


def read_label_nifti(path: Path) -> tuple[Shaped[np.ndarray, "z y x"], np.ndarray]:
    """Read a label file: its values, and the 4 x 4 affine that maps ``(i, j, k, 1)`` to RAS millimetres.

    Raises:
        IngestError: as ``read_nifti``, and ``not-a-label-file`` if the values are not whole numbers.
    """
    loaded = _load(path)
    voxels = loaded.voxels_czyx
    if voxels.shape[0] != 1 or not np.array_equal(voxels, np.round(voxels)):
        message = f"{path.name}: labels must be whole numbers in one channel. Is this an image or a probability map?"
        raise IngestError("not-a-label-file", message)
    return voxels[0].astype(np.int64), loaded.affine


def count_volumes(path: Path) -> int | None:
    """Return how many volumes, or values per voxel, the header of a file tells of; None where it cannot be read."""
    try:
        with _reading(path) as stream:
            return int(math.prod(raw_header(stream, path.name).get_data_shape()[3:]))
    except IngestError:
        return None


@dataclass(frozen=True, slots=True, kw_only=True)
class _Loaded:
    """One file, decoded and with an affine that can be inverted."""

    header: NiftiHeader
    affine: np.ndarray
    voxels_czyx: np.ndarray


def _load(path: Path, volumes: int = 1) -> _Loaded:
    check_not_empty(path, path.name)
    with _reading(path) as stream:
        header = raw_header(stream, path.name)
        _spacing_zyx_mm(header, path.name)
        image = _image_class(header).from_stream(stream)
        _check_dimensions(image.shape, path.name, volumes)
        affine = _checked_affine(image.affine, path.name)
        voxels = _to_czyx(_values(image))
        _drain(stream)
    return _Loaded(header=header, affine=affine, voxels_czyx=voxels)


def raw_header(stream: io.BufferedIOBase, label: str) -> NiftiHeader:
    """Read the header exactly as it is in the file, and rewind.

    Raises:
        IngestError: ``not-nifti`` if the first bytes are no NIfTI header.
    """
    head = stream.read(_NIFTI2_BYTES)
    stream.seek(0)
    for kind, size, magics in (
        (nib.Nifti1Header, _NIFTI1_BYTES, (b"n+1", b"ni1")),
        (nib.Nifti2Header, _NIFTI2_BYTES, (b"n+2", b"ni2")),
    ):
        if len(head) >= size and kind.may_contain_header(head):
            header = kind(head[:size], check=False)
            if bytes(header["magic"])[:3] in magics:
                return header
    message = f"{label}: the content is not NIfTI. Was another kind of file renamed?"
    raise IngestError("not-nifti", message)


@contextmanager
def _reading(path: Path) -> Iterator[io.BufferedIOBase]:
    """Open plain or gzipped bytes, and turn each way of failing into a slug."""
    packed = path.name.lower().endswith(".gz")
    try:
        with gzip.open(path, "rb") if packed else path.open("rb") as stream:
            yield stream
    except gzip.BadGzipFile as error:
        slug, cause = ("corrupt-gzip", "its checksum is wrong") if "CRC" in str(error) else ("not-nifti", "it is not gzipped")
        raise IngestError(slug, f"{path.name}: the name says gzip, but {cause}. Was another kind of file renamed, or damaged?") from error
    except (EOFError, zlib.error) as error:
        message = f"{path.name}: the compressed data ends early or is damaged. Copy or export the file again."
        raise IngestError("truncated-gzip", message) from error
    except OSError as error:
        if "Expected" in str(error):  # nibabel: "Expected 64000 bytes, got 123 bytes from object"
            slug = "truncated-gzip" if packed else "truncated-file"
            raise IngestError(slug, f"{path.name}: the voxels end early ({error}). Copy or export the file again.") from error
        raise IngestError("unreadable", f"{path.name}: the file cannot be read ({error}).") from error
    except (HeaderDataError, ImageFileError, ValueError, TypeError, OverflowError, MemoryError, np.linalg.LinAlgError) as error:
        if isinstance(error, IngestError):
            raise
        message = f"{path.name}: nibabel cannot make sense of the file: {type(error).__name__}: {error}"
        raise IngestError("unreadable", message) from error


def _drain(stream: io.BufferedIOBase) -> None:
    """Read to the end, because gzip compares its checksum only there."""
    while stream.read(1 << 20):
        pass


def _image_class(header: NiftiHeader) -> type[nib.Nifti1Image]:
    if isinstance(header, nib.Nifti2Header):
        return nib.Nifti2Image
    return nib.Nifti1Image


def _spacing_zyx_mm(header: NiftiHeader, label: str) -> tuple[float, float, float]:
    """Take the voxel size from the header as it stands in the file."""
    unit = int(header["xyzt_units"]) & 7
    if unit not in (0, 2):
        message = f"{label}: lengths are in {_UNITS.get(unit, f'unit {unit}')}, but must be in millimetres. Convert pixdim and affine."
        raise IngestError("unsupported-units", message)
    dimensions = int(header["dim"][0])
    sizes = [float(v) for v in header["pixdim"][1:4]]
    used = min(max(dimensions, 0), 3)
    if not all(0 < s < 1e4 for s in sizes[:used]):
        message = f"{label}: the voxel size is {tuple(sizes)} mm, but must be three positive lengths. A zero usually means a lost slice thickness."
        raise IngestError("bad-spacing", message)
    x, y, z = [s if 0 < s < 1e4 else 1.0 for s in sizes]
    return (z, y, x)


def _checked_affine(affine: np.ndarray | None, label: str) -> np.ndarray:
    """Refuse a matrix that does not place the voxels in space."""
    usable = affine is not None and np.isfinite(affine).all() and abs(np.linalg.det(affine[:3, :3])) > 1e-12
    if affine is None or not usable:
        found = None if affine is None else affine.tolist()
        message = f"{label}: the affine cannot be inverted: {found}. The sform or qform of the header is damaged."
        raise IngestError("bad-affine", message)
    return np.asarray(affine, dtype=np.float64)


def _rows(affine: np.ndarray) -> tuple[tuple[float, float, float, float], ...]:
    return tuple((float(a), float(b), float(c), float(d)) for a, b, c, d in affine)


def _header_fields(header: NiftiHeader) -> dict[str, float | int | list[float]]:
    """Keep the numbers that the affine and voxel size came from."""
    pixdim = [float(v) if np.isfinite(v) else 0.0 for v in header["pixdim"]]
    return {
        "sform_code": int(header["sform_code"]),
        "qform_code": int(header["qform_code"]),
        "quatern": [float(header[f"quatern_{axis}"]) for axis in "bcd"],
        "qoffset": [float(header[f"qoffset_{axis}"]) for axis in "xyz"],
        "qfac": pixdim[0],
        "pixdim": pixdim,
        "sform": [float(v) for axis in "xyz" for v in header[f"srow_{axis}"]],
        "xyzt_units": int(header["xyzt_units"]),
    }


def _check_dimensions(shape: tuple[int, ...], label: str, volumes: int) -> None:
    """Accept planes, volumes, volumes with vector components and as many volumes as there are channels; refuse what runs over time."""
    if len(shape) < 2 or 0 in shape:
        message = f"{label}: the array has the shape {shape}, which is no image of two or three dimensions."
        raise IngestError("not-a-volume", message)
    if len(shape) > 3 and shape[3] > 1 and (shape[3] != volumes or any(n > 1 for n in shape[4:])):
        message = f"{label}: the file holds {shape[3]} volumes (shape {shape}){_cure(volumes)}"
        raise IngestError("time-series", message)
    if len(shape) > 4 and (shape[4] > _VECTOR_LIMIT or any(n > 1 for n in shape[5:])):
        message = (
            f"{label}: the shape {shape} has more than {_VECTOR_LIMIT} values per voxel. Save the ones you want as files of their own."
        )
        raise IngestError("not-a-volume", message)


def _cure(volumes: int) -> str:
    """Say what to do about a file with more volumes than were expected."""
    if volumes > 1:
        return f", but {volumes} channels are named. Name as many channels as there are volumes."
    return (
        ". If they are channels of one scan, as MR sequences are, name them in this order: ingest: {channels: [t1, t2]}. If they are points in time, "
        "split the file, for example with nibabel.four_to_three, and ingest those that you want."
    )


def _values(image: nib.Nifti1Image) -> np.ndarray:
    """Read the voxels: native type where the header scales nothing, else the smallest float that holds the scaled values."""
    stored = cast("ArrayProxy", image.dataobj)
    voxels = np.asanyarray(stored)
    if stored.slope == 1 and stored.inter == 0:
        return np.asarray(voxels)
    single = voxels.astype(np.float32)
    return single if np.array_equal(single.astype(np.float64), voxels, equal_nan=True) else voxels.astype(np.float64)


def _to_czyx(voxels: np.ndarray) -> Shaped[np.ndarray, "c z y x"]:
    """Turn ``i j k [t=1] [component]``, or a structured colour type, into channels first."""
    if voxels.dtype.names:
        voxels = np.stack([voxels[name] for name in voxels.dtype.names if name != "A"], axis=-1)
        planes = voxels.reshape((*_first_three(voxels.shape[:-1]), voxels.shape[-1]))
    else:
        components = int(np.prod(voxels.shape[3:], dtype=np.int64))
        planes = voxels.reshape((*_first_three(voxels.shape), components), order="F")
    if planes.dtype.kind == "f" and planes.dtype.itemsize > 8:
        planes = planes.astype(np.float64)
    return native_order(np.ascontiguousarray(planes.T))


def _first_three(shape: tuple[int, ...]) -> tuple[int, int, int]:
    i, j, k = (*shape, 1, 1, 1)[:3]
    return (i, j, k)


def _contradictions(affine: np.ndarray, spacing_zyx_mm: tuple[float, float, float], label: str) -> tuple[str, ...]:
    """Say so when the affine stretches voxels to another size than the header states (more than 1 %)."""
    stated = np.array(spacing_zyx_mm[::-1])
    stretched = np.linalg.norm(affine[:3, :3], axis=0)
    if np.allclose(stretched, stated, rtol=0.01):
        return ()
    found = tuple(round(float(s), 4) for s in stretched)
    return (f"{label}: the header says voxels of {tuple(stated.tolist())} mm, its affine {found} mm; spacing follows the header.",)
