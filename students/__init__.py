"""Pseudo-label to small model: training, prediction, and honest evaluation.

``from students import load_student`` costs nothing until it is called: torch is imported by the modules that use it.
"""

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # for type checkers only; nothing here is read at run time
    from students.predict import Student


def load_student(path: str | Path, *, device: str = "auto") -> "Student":
    """Load a trained student.

    Args:
        path: The student's folder, with ``student.json`` and ``model.safetensors``.
        device: ``auto`` takes CUDA where there is one; otherwise a torch device name.

    Raises:
        StudentFileError: if the folder is not a usable student.
    """
    from students.predict import Student

    return Student.load(path, device=device)


__all__ = ["load_student"]
