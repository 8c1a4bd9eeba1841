"""Read PNG, JPEG and TIFF images as cases of one or more slices.

Pixels only: EXIF, XMP, comments and colour profiles stay behind. A print resolution ("300 dpi") says nothing about
the size of a pixel in the patient, so spacing is believed only where a TIFF states it in the metric units of ImageJ or
OME; everything else is 1 mm with ``spacing_known`` false.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Shaped
from PIL import Image, ImageOps, UnidentifiedImageError

from storage.case import Geometry
from storage.errors import IngestError
from storage.ingest.source import Naming, SourceCase, check_not_empty, finish_case, native_order

_TIFF = (".tif", ".tiff")
_EXIF_ORIENTATION = 0x0112
_MM_PER_UNIT = {
    "mm": 1.0,
    "millimeter": 1.0,
    "cm": 10.0,
    "um": 1e-3,
    "µm": 1e-3,
    "\\u00B5m": 1e-3,
    "micron": 1e-3,
    "microns": 1e-3,
    "nm": 1e-6,
}
_PNG_DEPTH_BYTE, _PNG_COLOUR_BYTE = 24, 25
"""Where a PNG's header chunk states bits per sample and colour type (PNG specification, IHDR)."""


def read_image(path: Path, naming: Naming) -> SourceCase:
    """Read one image file as a case.

    Raises:
        IngestError: with the slug ``zero-bytes``, ``not-an-image-file``, ``truncated-image``, ``time-series``, ``not-a-volume``,
            ``too-large``, ``empty-volume``, ``nan-volume``, ``unsupported-dtype`` or ``unreadable``.
    """
    check_not_empty(path, path.name)
    with _reading(path):
        if path.suffix.lower() in _TIFF:
            image, spacing = _read_tiff(path)
            notes: tuple[str, ...] = ()
        else:
            image, notes = _read_pillow(path)
            spacing = None
    return finish_case(native_order(np.ascontiguousarray(image)), flat_geometry(spacing), naming, notes=notes)


def read_label_image(path: Path) -> Shaped[np.ndarray, "1 y x"]:
    """Read a label image: grey values or palette indices are class ids.

    Raises:
        IngestError: as ``read_image``, and ``not-a-label-file`` for a colour image.
    """
    check_not_empty(path, path.name)
    with _reading(path), Image.open(path) as picture:
        if picture.mode not in ("1", "L", "P", "I", "I;16", "I;16B"):
            message = f"{path.name}: a label image needs one value per pixel, but this one is {picture.mode}. Save it as 8- or 16-bit grey."
            raise IngestError("not-a-label-file", message)
        return np.asarray(picture).astype(np.int64)[None]


def flat_geometry(spacing_zyx_mm: tuple[float, float, float] | None) -> Geometry:
    """Place an image without orientation as a radiologist sees it: columns run to the patient's left, rows to the back."""
    z, y, x = spacing_zyx_mm or (1.0, 1.0, 1.0)
    affine = ((-x, 0.0, 0.0, 0.0), (0.0, -y, 0.0, 0.0), (0.0, 0.0, z, 0.0), (0.0, 0.0, 0.0, 1.0))
    return Geometry(spacing_zyx_mm=(z, y, x), affine=affine, spacing_known=spacing_zyx_mm is not None)


@contextmanager
def _reading(path: Path) -> Iterator[None]:
    """Turn each way of failing into a slug."""
    try:
        yield
    except IngestError:
        raise
    except UnidentifiedImageError as error:
        message = f"{path.name}: the content is no image that can be read. Was another kind of file renamed?"
        raise IngestError("not-an-image-file", message) from error
    except Image.DecompressionBombError as error:
        message = f"{path.name}: the image is too large to open at once ({error}). Tile it first."
        raise IngestError("too-large", message) from error
    except (OSError, SyntaxError) as error:  # Pillow reports damaged PNG chunks as SyntaxError
        message = f"{path.name}: the image data end early or are damaged ({error}). Copy or export the file again."
        raise IngestError("truncated-image", message) from error
    except Exception as error:
        # The decoders of TIFF raise whatever their C libraries thought of: one bad file must not end the run.
        message = f"{path.name}: the image cannot be read: {type(error).__name__}: {error}"
        raise IngestError("unreadable", message) from error


def _read_pillow(path: Path) -> tuple[Shaped[np.ndarray, "c 1 y x"], tuple[str, ...]]:
    if _is_deep_colour_png(path):
        return _channels_first(_read_deep_colour(path)), ()
    with Image.open(path) as picture:
        turned = picture.getexif().get(_EXIF_ORIENTATION, 1) != 1
        upright = ImageOps.exif_transpose(picture) if turned else picture
        pixels = np.asarray(_plain(upright))
    notes = (f"{path.name}: turned upright, as its camera data ask viewers to.",) if turned else ()
    return _channels_first(pixels), notes


def _plain(picture: Image.Image) -> Image.Image:
    """Reduce the many modes of Pillow to grey of any depth, or RGB."""
    if picture.mode in ("L", "I", "F", "RGB") or picture.mode.startswith("I;16"):
        return picture
    return picture.convert("L" if picture.mode in ("1", "LA", "La") else "RGB")


def _is_deep_colour_png(path: Path) -> bool:
    """Tell whether Pillow would squeeze this file to 8 bits: a PNG with 16-bit colour, or 16-bit grey with alpha."""
    with path.open("rb") as file:
        head = file.read(_PNG_COLOUR_BYTE + 1)
    is_png = len(head) > _PNG_COLOUR_BYTE and head.startswith(b"\x89PNG")
    return is_png and head[_PNG_DEPTH_BYTE] == 16 and head[_PNG_COLOUR_BYTE] in (2, 4, 6)


def _read_deep_colour(path: Path) -> Shaped[np.ndarray, "y x ..."]:
    import imagecodecs

    pixels = np.asarray(imagecodecs.png_decode(path.read_bytes()))
    return pixels[..., 0] if pixels.ndim == 3 and pixels.shape[2] == 2 else pixels


def _channels_first(pixels: Shaped[np.ndarray, "y x ..."]) -> Shaped[np.ndarray, "c 1 y x"]:
    if pixels.ndim == 2:
        return pixels[None, None]
    return np.moveaxis(pixels[..., :3], -1, 0)[:, None]


def _read_tiff(path: Path) -> tuple[Shaped[np.ndarray, "c z y x"], tuple[float, float, float] | None]:
    import tifffile

    try:
        with tifffile.TiffFile(path) as tiff:
            if not tiff.series:
                raise IngestError("not-an-image-file", f"{path.name}: the TIFF holds no image.")
            series = tiff.series[0]
            image = _order_tiff(series.asarray(), series.axes, path.name)
            return image, _tiff_spacing(tiff)
    except tifffile.TiffFileError as error:
        raise IngestError("not-an-image-file", f"{path.name}: the content is no TIFF ({error}). Was another file renamed?") from error


def _order_tiff(pixels: np.ndarray, axes: str, label: str) -> Shaped[np.ndarray, "c z y x"]:
    """Sort the axes that tifffile names into ``c z y x``: pages stack along z, samples and channels become c."""
    kept = [n for n, axis in enumerate(axes) if pixels.shape[n] > 1 or axis in "YX"]
    names = "".join("Z" if axes[n] in "IQZ" else "C" if axes[n] in "SC" else axes[n] for n in kept)
    if "T" in names:
        message = f"{label}: the stack runs over time (axes {axes}, shape {pixels.shape}). Split it into one file per time point."
        raise IngestError("time-series", message)
    if len(set(names)) != len(names) or not set(names) <= set("CZYX"):
        raise IngestError("not-a-volume", f"{label}: the axes {axes} with shape {pixels.shape} are no image or z stack.")
    squeezed = pixels.reshape([pixels.shape[n] for n in kept])
    present = [axis for axis in "CZYX" if axis in names]
    ordered = np.transpose(squeezed, [names.index(axis) for axis in present])
    full = ordered[tuple(slice(None) if axis in present else None for axis in "CZYX")]
    has_alpha = "S" in axes and full.shape[0] in (2, 4)
    return full[: full.shape[0] - 1] if has_alpha else full


def _tiff_spacing(tiff: Any) -> tuple[float, float, float] | None:
    """Read the voxel size of a microscope's TIFF, or None where only a print resolution is given."""
    if tiff.is_ome:
        return _ome_spacing(tiff.ome_metadata)
    if tiff.is_imagej:
        return _imagej_spacing(dict(tiff.imagej_metadata or {}), tiff.pages[0].tags)
    return None


def _ome_spacing(document: str) -> tuple[float, float, float] | None:
    import tifffile

    image = tifffile.xml2dict(document).get("OME", {}).get("Image", {})
    pixels = (image[0] if isinstance(image, list) else image).get("Pixels", {})
    if "PhysicalSizeX" not in pixels or "PhysicalSizeY" not in pixels:
        return None
    # The OME schema's default unit is the micrometre.
    sizes = [float(pixels.get(f"PhysicalSize{a}", 1)) * _MM_PER_UNIT.get(str(pixels.get(f"PhysicalSize{a}Unit", "µm")), 0.0) for a in "ZYX"]
    if "PhysicalSizeZ" not in pixels:
        sizes[0] = 1.0
    return _if_positive(sizes)


def _imagej_spacing(metadata: dict[str, Any], tags: Any) -> tuple[float, float, float] | None:
    factor = _MM_PER_UNIT.get(str(metadata.get("unit", "")))
    if factor is None or "XResolution" not in tags or "YResolution" not in tags:
        return None
    pixels_per_unit = [tags[name].value for name in ("YResolution", "XResolution")]
    sizes = [factor * denominator / numerator if numerator else 0.0 for numerator, denominator in pixels_per_unit]
    return _if_positive([float(metadata.get("spacing", 1.0 / factor)) * factor, *sizes])


def _if_positive(sizes: list[float]) -> tuple[float, float, float] | None:
    z, y, x = sizes
    return (z, y, x) if all(0 < s < 1e4 for s in sizes) else None
