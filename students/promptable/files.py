"""A student that takes prompts, on disk: one file that loads as a teacher, and the card beside it."""

import json
from pathlib import Path
from typing import TYPE_CHECKING

from students.spec import StudentCard

if TYPE_CHECKING:  # torch stays out until a student is written
    from segment_anything.modeling import Sam

    from distill.teachers.base import TeacherProfile
    from distill.teachers.conv_encoder import ConvSamConfig

TEACHER_FILE = "teacher.safetensors"


def save_promptable(folder: Path, card: StudentCard, network: "Sam", config: "ConvSamConfig", profile: "TeacherProfile") -> None:
    """Write the model, whose header says what it is, then the card that makes the folder a student, then remove the checkpoint."""
    from safetensors.torch import save

    from distill.teachers.families import OWN_STUDENT
    from students.checkpoint import CARD, CHECKPOINT, replace_durably

    record = card.promptable
    header = {
        "family": OWN_STUDENT,
        "profile": profile.name,
        "config": json.dumps(config.to_json()),
        "logit_shift": str(profile.logit_shift),
        "taught_by": f"{record.teacher} {record.teacher_fingerprint}" if record else "",
        "student": card.name,
        "steps": str(card.steps),
    }
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in network.state_dict().items()}
    partial = folder / f"{TEACHER_FILE}.partial"
    partial.write_bytes(save(tensors, metadata=header))
    replace_durably(partial, folder / TEACHER_FILE)
    partial = folder / f"{CARD}.partial"
    partial.write_text(card.model_dump_json(indent=2) + "\n", encoding="utf-8")
    replace_durably(partial, folder / CARD)
    (folder / CHECKPOINT).unlink(missing_ok=True)
