"""What lies between tissue and file: blur, partial volume, coil bias, noise, windowing. Shared by generated and real training images."""

import cv2
import numpy as np


def smooth_field(rng: np.random.Generator, size: int, cells: int) -> np.ndarray:
    """Return ``(size, size)`` float32 of Gaussian noise that varies over about ``size / cells`` pixels."""
    return cv2.resize(rng.standard_normal((cells, cells)).astype(np.float32), (size, size), interpolation=cv2.INTER_CUBIC)


def degrade(rng: np.random.Generator, canvas: np.ndarray) -> np.ndarray:
    """Turn ideal intensities ``(S, S)`` float32 into an 8-bit grey picture ``(S, S, 3)`` as a scanner and a window would."""
    size = canvas.shape[0]
    image: np.ndarray = cv2.GaussianBlur(canvas, (0, 0), float(np.exp(rng.uniform(np.log(0.5), np.log(3.0)))))
    if rng.random() < 0.6:
        image = image * np.exp(rng.uniform(0, 0.35) * smooth_field(rng, size, int(rng.integers(2, 5))))
    image = _sample_coarsely(rng, image)
    image = _window(rng, image)
    if rng.random() < 0.5:
        image = 1.0 - image
    return np.repeat(np.asarray(255 * image, np.uint8)[..., None], 3, axis=2)


def _sample_coarsely(rng: np.random.Generator, image: np.ndarray) -> np.ndarray:
    """Add noise on the scanner's own grid, which is often much coarser than the network's."""
    size = image.shape[0]
    grid = size if rng.random() < 0.35 else int(np.exp(rng.uniform(np.log(28), np.log(size))))
    coarse = cv2.resize(image, (grid, grid), interpolation=cv2.INTER_AREA)
    sigma = float(np.exp(rng.uniform(np.log(0.004), np.log(0.12))))
    noise = np.asarray(rng.standard_normal(coarse.shape), np.float32)
    if rng.random() < 0.3:
        noise = 2.0 * cv2.GaussianBlur(noise, (0, 0), 0.8)
    return np.asarray(cv2.resize(coarse + sigma * noise, (size, size), interpolation=cv2.INTER_LINEAR))


def _window(rng: np.random.Generator, image: np.ndarray) -> np.ndarray:
    """Clip at random percentiles, stretch to [0, 1] and bend by a gamma."""
    low, high = np.percentile(image[::2, ::2], [rng.uniform(0, 4), rng.uniform(94, 100)])
    unit = np.clip((image - low) / max(float(high - low), 1e-6), 0.0, 1.0)
    bent: np.ndarray = unit ** float(np.exp(rng.uniform(-0.5, 0.5)))
    return bent
