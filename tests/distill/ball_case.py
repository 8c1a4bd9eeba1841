"""A bright ball in the dark as a case, for tests of asking; read with ``runpy``, as tests are no package."""

import numpy as np

from distill.casework import CaseWork, ClassWork
from distill.intensity import Window
from distill.prompts.hints import SliceHint
from distill.prompts.schedule import schedule_slices
from storage import CaseRecord, Geometry

IDENTITY = ((1.0, 0.0, 0.0, 0.0), (0.0, 1.0, 0.0, 0.0), (0.0, 0.0, 1.0, 0.0), (0.0, 0.0, 0.0, 1.0))


def ball_case(
    name: str, *prompted: int, radius: float = 6.0, spacing_mm: tuple[float, float, float] = (1.0, 1.0, 1.0)
) -> tuple[CaseWork, np.ndarray]:
    """A bright ball in the dark, prompted by its tight box on some slices."""
    z, y, x = np.mgrid[:20, :24, :32]
    ball = (z - 10) ** 2 + (y - 12) ** 2 + (x - 15) ** 2 <= radius**2
    hints = {}
    for at in prompted:
        rows, columns = np.nonzero(ball[at])
        hints[at] = SliceHint(box=np.array([columns.min(), rows.min(), columns.max() + 1, rows.max() + 1], np.float32))
    record = CaseRecord(
        id=name, patient=name, shape_czyx=(1, 20, 24, 32), dtype="uint8", geometry=Geometry(spacing_zyx_mm=spacing_mm, affine=IDENTITY)
    )
    target = ClassWork(plans=schedule_slices(hints, 20), probability=np.zeros(ball.shape, np.float32))
    return CaseWork(
        record=record, volume_czyx=(200 * ball[None]).astype(np.uint8), window=Window(low=0, high=255, rule="test"), classes={1: target}
    ), ball
