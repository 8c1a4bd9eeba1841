"""From teacher to pseudo-label: prompts, the engine, uncertainty, refinement, calibration, quality.

``load_teacher`` is the door for scripts. It is found lazily, so that importing a small part of this room does not import torch.
"""

from typing import Any

__all__ = ["load_teacher"]


def __getattr__(name: str) -> Any:
    """Import the public names on first use."""
    if name == "load_teacher":
        from distill.teachers.checkpoints import load_teacher

        return load_teacher
    message = f"module 'distill' has no attribute {name!r}"
    raise AttributeError(message)
