"""Distil a teacher into a student that takes prompts, resumably, within a budget. Importing this costs no torch; calling `train` does."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from distill.label_plan import LabelPlan
from storage import Archive, CaseRecord, ClassInfo, fingerprint
from students.compact import TrainedStudent, finished_card
from students.errors import TrainingError
from students.origins import PromptableRecord
from students.promptable.files import TEACHER_FILE
from students.spec import NO_LABEL, NetworkPlan, PromptableSpec, StudentCard, StudentSpec, TrainProgress

if TYPE_CHECKING:  # torch stays out until `train` is called
    from distill.teachers.conv_encoder import ConvSamConfig
    from distill.teachers.sam import SamTeacher
    from students.promptable.distilling import Distilling
    from students.promptable.views import Views

TRAINER = "1"
"""Raised whenever training from the same inputs gives other students, so that old ones are trained again."""

_HEEDED = (
    "name",
    "kind",
    "promptable",
    "budget_seconds",
    "steps",
    "seed",
    "batch",
    "lr",
    "weight_decay",
    "validation_fraction",
    "validations",
    "cache_bytes",
)
"""Settings that decide the result."""
BATCH = 8
"""Pictures of a step."""
_FRESH = {True: 4, False: 1}
"""How many of them are new, for a teacher that sees small pictures, and for others, whose encoders are as slow as many steps."""
_SMALL_PX = 512
_LOOKED_AT = 24
"""Pictures of held-out patients."""
_VOLUMES_SHARE = 4
"""The part of the cache that volumes take; the rest is for pictures with their embeddings."""


def train(
    archive: Archive,
    *,
    classes: tuple[ClassInfo, ...],
    spec: StudentSpec,
    asking: LabelPlan,
    workdir: Path,
    cases: Sequence[str] | None = None,
    progress: Callable[[TrainProgress], None] | None = None,
) -> TrainedStudent:
    """Distil a teacher, or continue an interrupted training, or return at once if this very student is finished.

    Args:
        archive: Where images are read from; nothing else of it is.
        classes: What the student's masks will be asked about; it does not tell them apart itself.
        spec: What is asked for.
        asking: Names the teacher, and says how intensities become its pictures.
        workdir: The student becomes the folder ``workdir / spec.name``.
        cases: Cases to look at; by default all of the archive part. Others are refused.
        progress: Called about once a second.

    Raises:
        TrainingError: if there is no image to look at, a case is of another part, or the teacher cannot be distilled.
        CheckpointError: if the teacher cannot be loaded.
    """
    from distill.teachers.checkpoints import inspect_checkpoint

    records = looked_at(archive, cases)
    known = inspect_checkpoint(asking.teacher, base=asking.base)
    mark = student_mark(spec, records, asking, known.fingerprint)
    folder = workdir / spec.name
    done = finished_card(folder, mark)
    if done is not None:
        return TrainedStudent(path=folder, card=done, fresh=False, resumed=False)
    return _train(archive, records, _Request(spec=spec, classes=classes, asking=asking, folder=folder, mark=mark), progress)


def looked_at(archive: Archive, cases: Sequence[str] | None = None) -> list[CaseRecord]:
    """Return the cases whose images are learnt from, by id: never those that score or set thresholds.

    Raises:
        TrainingError: if there is none, or one is of another part.
    """
    chosen = archive.cases(part="archive") if cases is None else [archive[case].record for case in dict.fromkeys(cases)]
    records = sorted(chosen, key=lambda record: record.id)
    others = [record for record in records if record.part != "archive"]
    if others:
        message = f"case {others[0].id}: it belongs to the part {others[0].part!r} ({len(others)} such cases were given). Distillation looks at cases of the archive part only."
        raise TrainingError(message)
    if not records:
        message = "no case to learn from: the archive part is empty. Ingest images first, or move cases to it with a split."
        raise TrainingError(message)
    return records


def student_mark(spec: StudentSpec, records: Sequence[CaseRecord], asking: LabelPlan, teacher: str) -> str:
    """Return a hash of everything that decides the student.

    Args:
        spec: What is asked for.
        records: Whose images are looked at.
        asking: How they become pictures.
        teacher: Fingerprint of the teacher's weights.
    """
    return fingerprint(
        trainer=f"promptable-{TRAINER}",
        spec=spec.model_dump(include=set(_HEEDED), mode="json"),
        cases=[(record.id, record.fingerprint) for record in records],
        teacher=[teacher, asking.profile, asking.precision],
        intensity=asking.intensity.model_dump(mode="json"),
        planes=asking.ask.planes,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Request:
    """What `train` was asked, with where the answer goes."""

    spec: StudentSpec
    classes: tuple[ClassInfo, ...]
    asking: LabelPlan
    folder: Path
    mark: str

    @property
    def how(self) -> PromptableSpec:
        return self.spec.promptable or PromptableSpec()


def _train(
    archive: Archive, records: list[CaseRecord], asked: _Request, progress: Callable[[TrainProgress], None] | None
) -> TrainedStudent:
    import torch

    from students.promptable.distilling import Distilling, HeldOut
    from students.promptable.files import save_promptable
    from students.promptable.network import build_student, student_config
    from students.splits import split_by_patient

    teacher = _teacher(asked)
    if asked.spec.threads is not None:
        torch.set_num_threads(asked.spec.threads)
    config = student_config(teacher, asked.how.size)
    split = split_by_patient(records, asked.spec.validation_fraction, asked.spec.seed)
    views, held = (_views(archive, [record for record in records if record.id in set(ids)], teacher, asked) for ids in split)
    torch.manual_seed(asked.spec.seed)
    run = Distilling(
        asked.spec,
        build_student(teacher, config),
        views=views,
        held_out=HeldOut(held, min(_LOOKED_AT, held.pictures.slices), asked.spec.seed) if split[1] else None,
        folder=asked.folder,
        fingerprint=asked.mark,
    )
    run.run(progress)
    card = _card(run, records, split, teacher, asked, config)
    save_promptable(asked.folder, card, run.student, config, teacher.profile)
    return TrainedStudent(path=asked.folder, card=card, fresh=True, resumed=run.resumed)


def _teacher(asked: _Request) -> "SamTeacher":
    from distill.devices import resolve_devices
    from distill.teachers.checkpoints import load_teacher
    from students.promptable.network import known_teacher

    plan = asked.asking
    loaded = load_teacher(
        plan.teacher, profile=plan.profile, base=plan.base, device=resolve_devices(plan.device)[0], precision=plan.precision
    )
    return known_teacher(loaded, plan.teacher)


def _views(archive: Archive, records: Sequence[CaseRecord], teacher: "SamTeacher", asked: _Request) -> "Views":
    from students.promptable.pictures import Pictures
    from students.promptable.views import Views

    spec = asked.spec
    volumes = spec.cache_bytes // _VOLUMES_SHARE
    pictures = Pictures(archive, records, intensity=asked.asking.intensity, planes=asked.asking.ask.planes == "three", cache_bytes=volumes)
    batch = spec.batch or BATCH
    fresh = min(batch, _FRESH[teacher.profile.image_size <= _SMALL_PX])
    return Views(pictures, teacher, batch=batch, fresh=fresh, seed=spec.seed, room_bytes=spec.cache_bytes - volumes)


def _card(
    run: "Distilling",
    records: Sequence[CaseRecord],
    split: tuple[list[str], list[str]],
    teacher: "SamTeacher",
    asked: _Request,
    config: "ConvSamConfig",
) -> StudentCard:
    encoder = sum(each.numel() for each in run.student.image_encoder.parameters())
    return StudentCard(
        name=asked.spec.name,
        spec=asked.spec,
        plan=_plan(asked.spec, config, int(run.student.mask_decoder.num_mask_tokens)),
        classes=asked.classes,
        label_set=NO_LABEL,
        training_cases=tuple(split[0]),
        validation_cases=tuple(split[1]),
        training_patients=tuple(sorted({record.patient for record in records})),
        fingerprint=asked.mark,
        parameters=sum(each.numel() for each in run.student.parameters()),
        steps=run.state.step,
        seconds=round(run.state.seconds, 3),
        agreement=run.state.history[-1].agreement,
        stopped=run.state.stopped or "budget",
        history=tuple(run.state.history),
        promptable=PromptableRecord(
            file=TEACHER_FILE,
            teacher=Path(asked.asking.teacher).name,
            teacher_fingerprint=teacher.fingerprint,
            profile=teacher.profile.name,
            prompts=teacher.profile.prompts,
            image_size=teacher.profile.image_size,
            encoder_parameters=encoder,
            teacher_encoder_parameters=sum(each.numel() for each in teacher.sam.image_encoder.parameters()),
            decoder=asked.how.decoder,
            slices=run.slices,
            embedding_steps=run.state.embedding_steps,
            embedding_error=run.state.error,
        ),
    )


def _plan(spec: StudentSpec, config: "ConvSamConfig", masks: int) -> NetworkPlan:
    """Return what a plan of other students says, of the encoder: its levels, and the square that it sees."""
    levels = len(config.widths)
    return NetworkPlan(
        dimensions="2d",
        in_channels=3,
        outputs=masks,
        filters=config.widths,
        strides=((2, 2),) * levels,
        kernels=((5, 5), *((3, 3),) * (levels - 1)),
        patch_zyx=(1, config.image_size, config.image_size),
        spacing_zyx_mm=(1.0, 1.0, 1.0),
        batch=spec.batch or BATCH,
    )
