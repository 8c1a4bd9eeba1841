"""Who is held out of a training, where a list of names said who was to be."""

import logging
from collections.abc import Collection

from students.spec import StudentSpec

LOG = logging.getLogger("samdistill.students")


def tell_of_other_patients(spec: StudentSpec, watched: Collection[str], by_name: Collection[str]) -> None:
    """Log that none of the patients who were to be held out by name is held out, if so: they have no believed label, or nobody else has one.

    Args:
        spec: Of the student.
        watched: Patients who are held out.
        by_name: Cases that could be held out by name (`students.splits.split_by_name`).
    """
    if not spec.held_out or by_name:
        return
    instead = f"{len(watched)} drawn by seed {spec.seed} {'is' if len(watched) == 1 else 'are'}" if watched else "nobody is"
    LOG.warning(
        "student %s: none of the %d patients to be held out by name can be, as none has a believed label or nobody else has one; %s held out "
        "instead, so its agreement is not that of the students before it",
        spec.name,
        len(spec.held_out),
        instead,
    )
