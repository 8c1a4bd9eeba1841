"""The cubic resize that MedSAM was trained with, to the last grey level, many times faster than the library that defined it.

``skimage.transform.resize(order=3, preserve_range=True, anti_aliasing=True)`` filters all three axes of a picture together, 64
products per value, and MedSAM then cuts to whole numbers, so that noise of 1e-14 in constant areas decides between two grey levels.
Here the two image axes are filtered one after the other, 8 products per value; only where the result lies so close to a whole
number that this noise decides are all 64 products summed, in scipy's own routine and order.
"""

import numpy as np
from scipy import ndimage, sparse

NEAR = 1e-6
"""Far above what the order of summation changes (1e-12), far below a grey level."""


def resize_cubic(image: np.ndarray, size: int) -> np.ndarray:
    """Stretch ``(H, W, 3)`` uint8 to ``(size, size, 3)`` uint8, smoothed first along axes that shrink."""
    if image.shape[:2] == (size, size):
        return image
    source = image.astype(np.float64)
    factors = np.divide(source.shape, (size, size, 3))
    smooth = ndimage.gaussian_filter(source, np.maximum(0, (factors - 1) / 2), cval=0, mode="mirror")
    low, high = source.min(), source.max()
    out = _separably(smooth, size)
    whole = np.rint(out)
    # At or below the smallest grey level clipping decides, whatever the noise.
    doubtful = (np.abs(out - whole) < NEAR) & (whole > low) & (whole <= high)
    np.clip(out, low, high, out=out)
    if doubtful.any():
        out[doubtful] = np.clip(_jointly(smooth, size, doubtful), low, high)
    return out.astype(np.uint8)


def _places(source: int, target: int) -> np.ndarray:
    """Return where the centres of ``target`` pixels lie among ``source`` pixels, with scipy's own roundings (``grid_mode``)."""
    places: np.ndarray = (np.arange(target, dtype=np.float64) + 0.5) * np.divide(source, target) - 0.5
    return places


def _separably(smooth: np.ndarray, size: int) -> np.ndarray:
    rows, columns = (_weights(side, size) for side in smooth.shape[:2])
    grey = bool((smooth == smooth[..., :1]).all())
    channels = []
    for n in range(1 if grey else 3):
        knots = ndimage.spline_filter(smooth[..., n], 3, output=np.float64, mode="mirror")
        channels.append((columns @ (rows @ knots).T).T)
    return np.stack(channels * 3 if grey else channels, axis=2)


def _weights(source: int, target: int) -> sparse.csr_array:
    """Return ``(target, source)``: what each knot of a cubic B-spline, mirrored at the ends, adds to each place."""
    places = _places(source, target)
    first = np.floor(places)
    t = places - first
    parts = np.stack([(1 - t) ** 3, 3 * t**3 - 6 * t**2 + 4, 3 * (1 - t) ** 3 - 6 * (1 - t) ** 2 + 4, t**3]) / 6
    period = max(1, 2 * (source - 1))
    knots = (first + np.arange(-1, 3)[:, None]).astype(np.int64) % period
    knots = np.minimum(knots, period - knots) if source > 1 else np.zeros_like(knots)
    rows = np.broadcast_to(np.arange(target), knots.shape)
    return sparse.csr_array((parts.ravel(), (rows.ravel(), knots.ravel())), shape=(target, source))


def _jointly(smooth: np.ndarray, size: int, wanted: np.ndarray) -> np.ndarray:
    """Return the values at ``wanted`` ``(size, size, 3)`` as ``scipy.ndimage.zoom`` computes them, bit for bit."""
    knots = ndimage.spline_filter(smooth, 3, output=np.float64, mode="mirror")
    rows, columns, channels = np.nonzero(wanted)
    places = (_places(smooth.shape[0], size)[rows], _places(smooth.shape[1], size)[columns], channels.astype(np.float64))
    values: np.ndarray = ndimage.map_coordinates(knots, places, order=3, mode="mirror", prefilter=False)
    return values
