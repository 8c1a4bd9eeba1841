"""Every error of the distill room, as one hierarchy.

DistillError
├── TeacherError
│   ├── CheckpointError      (ValueError) a file that is not a usable checkpoint
│   ├── FetchError           (OSError)    an official file that could not be brought here
│   └── PromptError          (ValueError) a prompt the teacher cannot answer
├── PlanError                (ValueError) a plan that contradicts itself or the archive
├── ExtensionError           (ValueError) something of another package that cannot be used
└── CalibrationError         (ValueError) too little gold to calibrate on
"""


class DistillError(Exception):
    """Base of everything this room raises on purpose."""


class TeacherError(DistillError):
    """A teacher cannot be loaded or asked."""


class CheckpointError(TeacherError, ValueError):
    """A file that is not a usable checkpoint; the message says what it looks like instead."""


class FetchError(TeacherError, OSError):
    """An official checkpoint could not be brought here; the message says how to do it by hand."""


class PromptError(TeacherError, ValueError):
    """A prompt that the teacher cannot answer, such as a box of no area."""


class PlanError(DistillError, ValueError):
    """A plan that contradicts itself or the archive it is for."""


class ExtensionError(DistillError, ValueError):
    """A source of prompts or a teacher that another package brings and that cannot be used; the message names the package."""


class CalibrationError(DistillError, ValueError):
    """Too little gold, or gold of the wrong kind, to calibrate on."""
