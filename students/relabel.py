"""Ways to label anew in a later round. Imports nothing, so that the command line starts light."""

from typing import Literal

Relabel = Literal["teacher", "student", "both", "mean"]
"""Who labels anew in a later round: the teacher; students that never saw the case; the teacher where both agree; or the mean of both."""
