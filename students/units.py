"""In what lengths and volumes are shown: millimetres, or pixels where nobody knows how large a pixel is."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from storage import CaseRecord

Known = bool | Literal["mixed"]
"""Whether voxel sizes are known: of all cases, of none, or of some."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Units:
    """In what lengths and volumes are shown."""

    length: str
    volume: str
    per_ml: float
    """Units of volume in a millilitre."""
    small: str
    """Of volumes as small as lesions; a cubic millimetre is one pixel where no spacing is known."""
    thousand: str
    """What stands for a millilitre."""


MILLIMETRES = Units(length="mm", volume="ml", per_ml=1.0, small="mm3", thousand="ml")
PIXELS = Units(length="px", volume="px", per_ml=1000.0, small="px", thousand="1000 px")
"""For cases without a spacing: one pixel was taken for a millimetre."""
MIXED = Units(length="mm or px", volume="ml or 1000 px", per_ml=1.0, small="mm3 or px", thousand="ml or 1000 px")
"""For cases of both kinds in one table."""


def units_of(known: Known) -> Units:
    """Return the units of cases whose voxel sizes are known, not known, or mixed."""
    return MIXED if known == "mixed" else MILLIMETRES if known else PIXELS


def spacing_known(records: Sequence[CaseRecord]) -> Known:
    """Tell whether voxel sizes are known of all, of none, or of some of the cases."""
    found = {record.geometry.spacing_known for record in records}
    return "mixed" if len(found) > 1 else found.pop()
