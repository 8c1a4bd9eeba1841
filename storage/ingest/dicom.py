"""Stack the slices of one DICOM series into a volume.

Order and spacing come from the positions of the slices. The stated thickness describes the beam, not the distance:
a series of slices 3 mm thick and 2 mm apart is common, and believing the header would stretch the patient by half.
"""

from dataclasses import dataclass
from statistics import median_low

import numpy as np
import pydicom
from jaxtyping import Float64, Shaped
from pydicom.pixels.processing import apply_color_lut
from pydicom.pixels.utils import pixel_array
from pydicom.uid import ExplicitVRBigEndian, ExplicitVRLittleEndian, ImplicitVRLittleEndian

from storage.case import Geometry
from storage.errors import IngestError
from storage.ingest.dicom_headers import DicomSeries, SliceHeader
from storage.ingest.images import flat_geometry
from storage.ingest.source import Naming, SourceCase, finish_case, native_order

_SAME_PLACE_MM = 0.01
"""Slices closer than this are at one place: positions are decimal strings, and no scanner steps by 10 micrometres."""
_STEP_TOLERANCE = 0.02
"""Share of a step that two steps may differ by; table positions are rounded to 0.01 or 0.1 mm."""
_STEP_DECIMALS = 9
"""A difference of decimal strings carries float noise in the 14th digit; a picometre is finer than any scanner means."""
_LPS_TO_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])


@dataclass(frozen=True, slots=True, kw_only=True)
class Stack:
    """Slices in order along their normal, one per place."""

    slices: tuple[SliceHeader, ...]
    geometry: Geometry
    notes: tuple[str, ...] = ()


def read_series(series: DicomSeries, *, modality: str | None = None) -> SourceCase:
    """Read one series as a case, in rescaled units (Hounsfield for CT).

    Raises:
        IngestError: with the slug ``missing-slices``, ``duplicate-slices``, ``mixed-spacing``, ``bad-spacing``, ``bad-affine``,
            ``truncated-dicom``, ``empty-volume``, ``nan-volume`` or ``unsupported-dtype``. No message quotes a header.
    """
    stack = order_slices(series)
    first = stack.slices[0]
    image = _rescale(_load_pixels(stack.slices), stack.slices)
    naming = Naming(case=series.case, patient=series.patient, modality=modality or first.modality)
    notes = stack.notes + ((f"case {series.case}: stored with low values bright; turned round.",) if first.monochrome1 else ())
    return finish_case(image, stack.geometry, naming, attributes=first.attributes, notes=notes)


def order_slices(series: DicomSeries) -> Stack:
    """Sort the slices along their normal, drop exact duplicates, and insist on even steps.

    Raises:
        IngestError: see ``read_series``.
    """
    first = series.slices[0]
    if first.position_mm is None or first.orientation is None:
        return Stack(slices=series.slices, geometry=_flat(first))
    normal = _unit_normal(series.case, first)
    ordered = sorted(series.slices, key=lambda s: (float(np.dot(s.position_mm or (), normal)), s.name_hash))
    kept, notes = _drop_duplicates(series.case, ordered, normal)
    positions = np.array([s.position_mm for s in kept], dtype=np.float64)
    _check_steps(series.case, positions @ normal)
    return Stack(slices=tuple(kept), geometry=_geometry(series.case, kept, positions, normal), notes=notes)


def _flat(header: SliceHeader) -> Geometry:
    if header.pixel_spacing_mm is None:
        return flat_geometry(None)
    return flat_geometry((1.0, *header.pixel_spacing_mm))


def _unit_normal(case: str, header: SliceHeader) -> Float64[np.ndarray, "3"]:
    orientation = np.array(header.orientation, dtype=np.float64)
    row, column = orientation[:3], orientation[3:]
    normal = np.cross(row, column)
    length = float(np.linalg.norm(normal))
    if not np.isfinite(orientation).all() or abs(length - 1) > 0.01:
        message = (
            f"case {case}: the direction cosines of rows and columns are not at right angles. The orientation in the header is damaged."
        )
        raise IngestError("bad-affine", message)
    return normal / length


def _drop_duplicates(case: str, ordered: list[SliceHeader], normal: np.ndarray) -> tuple[list[SliceHeader], tuple[str, ...]]:
    """Keep one slice per place if the others there show the same; refuse to choose between different ones."""
    kept = [ordered[0]]
    dropped = 0
    for header in ordered[1:]:
        apart = float(np.dot(np.subtract(header.position_mm or (), kept[-1].position_mm or ()), normal))
        if apart > _SAME_PLACE_MM:
            kept.append(header)
        elif _same_content(header, kept[-1]):
            dropped += 1
        else:
            message = (
                f"case {case}: two different slices lie at {_place(header, normal):.2f} mm along the normal. "
                "The series probably holds several time points, echoes or reconstructions: export each as a series of its own."
            )
            raise IngestError("duplicate-slices", message)
    notes = (f"case {case}: {dropped} slices were there twice with the same pixels; one of each is kept.",) if dropped else ()
    return kept, notes


def _same_content(a: SliceHeader, b: SliceHeader) -> bool:
    same_scale = (a.slope, a.intercept) == (b.slope, b.intercept)
    return same_scale and np.array_equal(_pixels(a), _pixels(b))


def _place(header: SliceHeader, normal: np.ndarray) -> float:
    return float(np.dot(header.position_mm or (), normal))


def _check_steps(case: str, places_mm: Float64[np.ndarray, "z"]) -> None:
    """Refuse gaps and uneven steps."""
    if len(places_mm) < 2:
        return
    steps = np.diff(places_mm)
    step = float(median_low(steps.tolist()))
    tolerance = max(_STEP_TOLERANCE * step, _SAME_PLACE_MM)
    if np.all(np.abs(steps - step) <= tolerance):
        return
    multiples = np.round(steps / step)
    if np.all(multiples >= 1) and np.all(np.abs(steps - multiples * step) <= tolerance * multiples):
        missing = [float(places_mm[n] + step * m) for n in range(len(steps)) for m in range(1, int(multiples[n]))]
        shown = ", ".join(f"{place:.2f}" for place in missing[:8]) + (", ..." if len(missing) > 8 else "")
        message = (
            f"case {case}: {len(missing)} of {len(places_mm) + len(missing)} slices are missing, at {shown} mm along the normal "
            f"(step {step:.3f} mm). Export the series again."
        )
        raise IngestError("missing-slices", message)
    message = (
        f"case {case}: the steps between slices vary from {steps.min():.3f} to {steps.max():.3f} mm. "
        "Resample the series to even steps, or export its parts as series of their own."
    )
    raise IngestError("mixed-spacing", message)


def _geometry(case: str, slices: list[SliceHeader], positions: Float64[np.ndarray, "z 3"], normal: np.ndarray) -> Geometry:
    """Build the affine from positions and directions, and turn it from LPS to RAS."""
    first = slices[0]
    if first.pixel_spacing_mm is None or not np.isfinite(positions).all():
        message = f"case {case}: the pixel spacing or a position is missing or not a positive length, so sizes in the patient are unknown."
        raise IngestError("bad-spacing", message)
    between_rows, between_columns = first.pixel_spacing_mm
    step = _step_vector(case, positions, normal, first)
    lps = np.eye(4)
    orientation = np.array(first.orientation, dtype=np.float64)
    lps[:3, 0] = orientation[:3] * between_columns
    lps[:3, 1] = orientation[3:] * between_rows
    lps[:3, 2] = step
    lps[:3, 3] = positions[0]
    ras = _LPS_TO_RAS @ lps + 0.0  # adding zero turns -0.0 into 0.0
    rows = tuple((float(a), float(b), float(c), float(d)) for a, b, c, d in ras)
    return Geometry(spacing_zyx_mm=(float(np.linalg.norm(step)), between_rows, between_columns), affine=rows)


def _step_vector(case: str, positions: Float64[np.ndarray, "z 3"], normal: np.ndarray, first: SliceHeader) -> Float64[np.ndarray, "3"]:
    """Return the way from one slice to the next; a tilted gantry shifts slices within their plane as well."""
    if len(positions) == 1:
        return normal * float(first.attributes.get("slice_thickness_mm", 1.0))
    step = (positions[-1] - positions[0]) / (len(positions) - 1)
    predicted = positions[0] + np.arange(len(positions))[:, None] * step
    astray = float(np.abs(positions - predicted).max())
    if astray > max(_STEP_TOLERANCE * float(np.linalg.norm(step)), _SAME_PLACE_MM):
        message = (
            f"case {case}: slices lie up to {astray:.2f} mm off the straight line from first to last. They are parts of different scans."
        )
        raise IngestError("mixed-spacing", message)
    return np.asarray(np.round(step, _STEP_DECIMALS))


def _load_pixels(slices: tuple[SliceHeader, ...]) -> Shaped[np.ndarray, "c z y x"]:
    """Fill one array slice by slice, so that the memory is that of the volume and one slice."""
    first = _pixels(slices[0])
    volume = np.empty((first.shape[0], len(slices), *first.shape[1:]), dtype=first.dtype)
    volume[:, 0] = first
    for z, header in enumerate(slices[1:], start=1):
        plane = _pixels(header)
        if plane.shape != first.shape:
            raise IngestError("mixed-size", f"{header.label}: the pixels are {plane.shape}, but those before it {first.shape}.")
        if not np.can_cast(plane.dtype, volume.dtype):
            volume = volume.astype(np.promote_types(plane.dtype, volume.dtype))
        volume[:, z] = plane
    return volume


def _pixels(header: SliceHeader) -> Shaped[np.ndarray, "c y x"]:
    """Decode one slice."""
    try:
        dataset = pydicom.dcmread(header.path, force=True)
        _state_syntax(dataset)
        pixels = pixel_array(dataset)
        if dataset.get("PhotometricInterpretation") == "PALETTE COLOR":
            pixels = apply_color_lut(pixels, dataset)
    except Exception as error:  # noqa: BLE001 - decoders raise anything, and their messages may quote the header
        message = (
            f"{header.label}: the pixels cannot be decoded ({type(error).__name__}). The file is cut off or its codec is not installed."
        )
        raise IngestError("truncated-dicom", message) from None
    pixels = native_order(pixels)
    if header.monochrome1:
        pixels = _turned_round(pixels, int(dataset.get("BitsStored", 8 * pixels.dtype.itemsize)))
    return np.asarray(np.moveaxis(pixels, -1, 0) if pixels.ndim == 3 else pixels[None])


def _state_syntax(dataset: pydicom.Dataset) -> None:
    """Name the transfer syntax of files without a meta header, as they were parsed."""
    if "TransferSyntaxUID" in dataset.file_meta:
        return
    implicit, little = dataset.original_encoding
    explicit = ExplicitVRLittleEndian if little else ExplicitVRBigEndian
    dataset.file_meta.TransferSyntaxUID = ImplicitVRLittleEndian if implicit else explicit


def _turned_round(pixels: np.ndarray, bits_stored: int) -> np.ndarray:
    if pixels.dtype.kind == "u":
        return np.asarray((1 << bits_stored) - 1 - pixels.astype(np.int64)).astype(pixels.dtype)
    return np.asarray(-1 - pixels)


def _rescale(volume: Shaped[np.ndarray, "c z y x"], slices: tuple[SliceHeader, ...]) -> Shaped[np.ndarray, "c z y x"]:
    """Apply slope and intercept of each slice: whole numbers stay int16 where they fit, all else is float32."""
    slopes = np.array([s.slope or 1.0 for s in slices])  # a slope of zero would erase the slice: it means "not given"
    intercepts = np.array([s.intercept for s in slices])
    if np.all(slopes == 1) and np.all(intercepts == 0):
        return volume
    whole = volume.dtype.kind in "iu" and np.all(slopes % 1 == 0) and np.all(intercepts % 1 == 0)
    dtype = _integer_type(volume, slopes, intercepts) if whole else np.dtype(np.float32)
    scaled = np.empty(volume.shape, dtype=dtype)
    for z in range(volume.shape[1]):
        scaled[:, z] = (volume[:, z] * slopes[z] + intercepts[z]).astype(dtype)
    return scaled


def _integer_type(volume: np.ndarray, slopes: np.ndarray, intercepts: np.ndarray) -> np.dtype[np.generic]:
    ends = np.array([[volume.min()], [volume.max()]], dtype=np.float64)
    reach = ends * slopes + intercepts
    fitting = (t for t in (np.int16, np.int32) if np.iinfo(t).min <= reach.min() and reach.max() <= np.iinfo(t).max)
    return np.dtype(next(fitting, np.float32))
