"""What came of further rounds: which student was chosen, why the rounds ended, and the files that say so."""

from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict

from flows.once import perform_once
from flows.recipe import Recipe
from flows.results import ROUNDS, StageResult, counted
from flows.round_students import copy_student, folder_in_round, list_as, round_in
from storage import Archive, fingerprint
from students.drift import LEAST_PATIENTS, Drift
from students.relabel import Relabel
from students.spec import RoundsNote


class RoundEntry(BaseModel):
    """One round after the first."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    number: int
    student: str
    label_set: str
    relabel: Relabel
    labels: dict[str, int] = {}
    """Cases by what refinement decided about their labels."""
    cases: int = 0
    """Learnt from."""
    dropped: tuple[str, ...] = ()
    """Left out, since their labels changed most."""
    drift: Drift | None = None
    """Compared with the student so far; None where there was no student."""


class RoundsRecord(BaseModel):
    """``rounds.json`` beside the report."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    format_version: Literal[1] = 1
    asked: int
    """Rounds that the recipe allows."""
    chosen: int = 1
    """Round of the best student."""
    ended: str = ""
    """Why there are fewer rounds than the recipe allows; empty where there are as many."""
    rounds: tuple[RoundEntry, ...] = ()
    """After the first."""

    @property
    def goes_on(self) -> bool:
        """Whether another round is to be made."""
        return not self.ended and len(self.rounds) + 1 < self.asked

    @property
    def words(self) -> tuple[str, ...]:
        """What was decided after each round but the first; one sentence each, without full stops."""
        found = tuple(f"round {each.number}: {each.drift.words}" for each in self.rounds if each.drift is not None)
        return (*found, *((self.ended,) if self.ended else ()))

    def with_round(self, entry: RoundEntry, *, ended: str) -> "RoundsRecord":
        """Return the record with one more round, whose student is chosen if it gained; the rounds end if it fell, or nobody can tell."""
        drift, chosen = entry.drift, self.chosen
        if drift is not None and not ended:
            ended = _why_ended(entry.number, drift, chosen)
            chosen = entry.number if drift.gained and not ended else chosen
        return self.model_copy(update={"rounds": (*self.rounds, entry), "chosen": chosen, "ended": ended})


def _why_ended(number: int, drift: Drift, chosen: int) -> str:
    stays = f"so the student of round {chosen} stays, and no more rounds are made"
    if not drift.is_known:
        return f"round {number} cannot be judged without {LEAST_PATIENTS} patients, with calibration gold or held out, {stays}"
    if not drift.fell:
        return ""
    how = (
        f"by more than {drift.may_fall:g}"
        if drift.difference is not None and drift.difference < -drift.may_fall
        else "by little, but certainly"
    )
    return f"round {number} is worse {how}, {stays}"


def rounds_file(recipe: Recipe) -> Path:
    """Where the record lies."""
    return recipe.whole.report_folder / "rounds.json"


def conclude(archive: Archive, recipe: Recipe, record: RoundsRecord) -> StageResult:
    """Put the chosen student in the recipe's place, and write down why; once per state of all that."""
    from students.checkpoint import read_card, weights_digest

    chosen = folder_in_round(recipe, record.chosen)
    if round_in(recipe.student_folder) != record.chosen:
        archive.ledger.plan(ROUNDS, {recipe.student.name: ""})  # another one is in its place: forget that the rounds had ended
    result = perform_once(
        archive.ledger,
        stage=ROUNDS,
        unit=recipe.student.name,
        fingerprint=fingerprint(record=record.model_dump(mode="json"), student=[read_card(chosen).fingerprint, weights_digest(chosen)]),
        output=rounds_file(recipe),
        work=lambda: _settle(archive, recipe, record),
    )
    made = counted(len(record.rounds) + 1, "round", "rounds")
    note = f"student of round {record.chosen} chosen, of {made}"
    return StageResult(
        stage="train",
        failed=result.failed,
        quarantined=result.quarantined,
        seconds=result.seconds,
        note="; ".join([result.note] if result.failed or result.quarantined else [note, *record.words]),
    )


def _settle(archive: Archive, recipe: Recipe, record: RoundsRecord) -> str:
    """Copy the chosen student into the recipe's place, with the reason on its card, list it there, and write the record."""
    for entry in record.rounds:
        if entry.drift is not None and entry.drift.after is not None and entry.drift.difference is not None:
            found = {f"guard_{entry.drift.measure}": entry.drift.after, "guard_change": entry.drift.difference}
            archive.catalog.add_student_metrics(entry.student, found)
    who = next((each.relabel for each in record.rounds if each.number == record.chosen), "teacher")
    note = RoundsNote(number=record.chosen, made=len(record.rounds) + 1, relabel=who, words=record.words)
    chosen = folder_in_round(recipe, record.chosen)
    copy_student(chosen, recipe.student_folder, note)
    list_as(archive, chosen.name, recipe.student_folder)
    file = rounds_file(recipe)
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(record.model_dump_json(indent=1) + "\n", encoding="utf-8")
    return ""
