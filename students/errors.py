"""Every error of the students room, as one hierarchy.

StudentError
├── StudentFileError     (ValueError) a folder that is not a usable student
├── TrainingError        (ValueError) nothing to learn from, or labels that contradict the classes
├── WorkerError          (RuntimeError) the process that trains ended without a student
├── ExportError          (ValueError) a student that cannot be written, or not faithfully, in another format
├── GoldLeakError        (ValueError) a score was asked for on a case that some step has seen
├── VolumeError          (ValueError) an image the student cannot answer for
└── NoSuchDeviceError    (ValueError) a device that is no device, or is not here
"""


class StudentError(Exception):
    """Base of everything this room raises on purpose."""


class ExportError(StudentError, ValueError):
    """A student that cannot be written in another format, or whose answers there are not its own; nothing is left behind then."""


class StudentFileError(StudentError, ValueError):
    """A folder that is not a usable student; the message says what is missing."""


class TrainingError(StudentError, ValueError):
    """There is nothing to learn from, or the labels contradict the classes."""


class WorkerError(StudentError, RuntimeError):
    """The process that trains ended without a student: it was killed, ran out of memory, or met an error; its log says more."""


class GoldLeakError(StudentError, ValueError):
    """Promise 6: a score was asked for on a case that training or calibration has seen."""


class VolumeError(StudentError, ValueError):
    """An image that the student cannot answer for, such as one with another number of channels."""


class NoSuchDeviceError(StudentError, ValueError):
    """A device that torch does not know, or that this machine does not have."""
