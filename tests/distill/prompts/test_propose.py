"""Sources are asked case by case, what they say is kept, and what was said is not asked for again."""

import runpy
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import pytest

from distill.engine import label_archive
from distill.errors import PlanError
from distill.prompts import registry
from distill.prompts.sources import SourceContext, Subject
from distill.propose import PromptPlan, propose_prompts, stage_of
from storage import Archive, Prompt

SMALL = runpy.run_path(str(Path(__file__).parents[1] / "small_archive.py"))
archive_of, plan_for, write_checkpoint = SMALL["archive_of"], SMALL["plan_for"], SMALL["write_checkpoint"]
NAME = "middle"
STORED = "proposed/middle"


@dataclass
class Middle:
    """Proposes a box in the middle slice of every case, except where told otherwise."""

    name: str = NAME
    fingerprint: str = "1"
    asked: list[str] = field(default_factory=list)
    missing: frozenset[str] = frozenset()
    broken: frozenset[str] = frozenset()
    about: int = 1
    warning: str = ""
    channel_version: str = ""

    def propose(self, subject: Subject) -> list[Prompt]:
        case = subject.record.id
        self.asked.append(case)
        if case in self.broken:
            message = "cannot look at this one"
            raise RuntimeError(message)
        if case in self.missing:
            return [Prompt(case=case, class_id=info.id, kind="absent") for info in subject.classes]
        z = subject.record.shape_czyx[1] // 2
        return [Prompt(case=case, class_id=self.about, kind="box", slice=z, box_xyxy_px=(5, 4, 18, 15), confidence=0.5)]


@pytest.fixture
def source(monkeypatch: pytest.MonkeyPatch) -> Middle:
    """Make ``middle`` a known source, and return the one that will be asked."""
    made = Middle()
    monkeypatch.setattr(registry, "SOURCES", {NAME: "nowhere:nothing"})
    monkeypatch.setattr("distill.prompts.sources.load_maker", lambda name: lambda context, options: made)
    return made


@pytest.fixture
def archive(tmp_path: Path) -> Archive:
    """Return three cases without any prompt."""
    archive = archive_of(tmp_path, 3)
    archive.catalog.delete_prompts(source="weak")
    return archive


@pytest.fixture
def plan(tmp_path: Path) -> PromptPlan:
    """Return a plan that asks ``middle``."""
    return PromptPlan(sources=(NAME,), label=plan_for(write_checkpoint(tmp_path), sources=(NAME,)))


def test_what_a_source_proposes_is_stored_under_its_name_and_asked(source: Middle, archive: Archive, plan: PromptPlan) -> None:
    summary = propose_prompts(archive, plan)
    assert (summary.done, summary.prompts, summary.absent) == (3, 3, 0)
    assert [prompt.source for prompt in archive.catalog.prompts("case00")] == [STORED]
    assert label_archive(archive, plan.label).done == 3


def test_what_a_source_could_not_learn_is_said_by_every_run(source: Middle, archive: Archive, plan: PromptPlan) -> None:
    assert propose_prompts(archive, plan).warnings == ()
    source.warning = "it has seen nothing"
    assert [propose_prompts(archive, plan).warnings for _ in range(2)] == [("it has seen nothing",)] * 2


def test_what_a_source_said_before_does_not_stay_where_it_cannot_be_asked_anew(source: Middle, archive: Archive, plan: PromptPlan) -> None:
    propose_prompts(archive, plan)
    source.fingerprint, source.broken = "2", frozenset({"case01"})
    assert propose_prompts(archive, plan).quarantined == ("case01",)
    assert archive.catalog.prompts("case01") == []
    assert len(archive.catalog.prompts("case00")) == 1


def test_a_second_run_asks_nobody(source: Middle, archive: Archive, plan: PromptPlan) -> None:
    propose_prompts(archive, plan)
    source.asked.clear()
    assert propose_prompts(archive, plan).skipped == 3
    assert source.asked == []


def test_a_source_that_has_changed_is_asked_again_and_its_old_prompts_go(source: Middle, archive: Archive, plan: PromptPlan) -> None:
    propose_prompts(archive, plan)
    source.fingerprint, source.missing = "2", frozenset({"case01"})
    assert propose_prompts(archive, plan).absent == 1
    assert [prompt.kind for prompt in archive.catalog.prompts("case01")] == ["absent"]


def test_another_version_for_channels_has_cases_of_several_asked_again_and_no_others(
    source: Middle, archive: Archive, plan: PromptPlan
) -> None:
    record = replace(archive["case00"].record, id="two", fingerprint="", shape_czyx=(2, *archive["case00"].record.shape_czyx[1:]))
    archive.add_case(record, np.concatenate([archive["case00"].read()] * 2))
    propose_prompts(archive, plan)
    source.channel_version, source.asked = "2", []
    propose_prompts(archive, plan)
    assert source.asked == ["two"]


def test_a_class_that_a_person_has_prompted_is_not_guessed_at(source: Middle, archive: Archive, plan: PromptPlan, tmp_path: Path) -> None:
    archive.catalog.add_prompts([Prompt(case="case00", class_id=1, kind="box", slice=0, box_xyxy_px=(1, 1, 9, 9))])
    chain = PromptPlan(sources=("weak", NAME), label=plan.label)
    propose_prompts(archive, chain)
    assert source.asked == ["case01", "case02"]


def test_a_case_that_a_source_cannot_look_at_is_set_aside_and_the_others_go_on(source: Middle, archive: Archive, plan: PromptPlan) -> None:
    source.broken = frozenset({"case01"})
    summary = propose_prompts(archive, plan)
    assert (summary.done, summary.skipped, summary.quarantined) == (2, 0, ("case01",))
    assert propose_prompts(archive, plan).skipped == 2
    assert "cannot look" in archive.ledger.quarantined(stage_of(NAME))[0].error


def test_a_prompt_about_another_class_is_refused_with_what_was_open(source: Middle, archive: Archive, plan: PromptPlan) -> None:
    source.about = 7
    assert len(propose_prompts(archive, plan).quarantined) == 3
    assert "about class 7, but the open classes are [1]" in archive.ledger.quarantined(stage_of(NAME))[0].error


def test_an_interrupted_case_is_given_back(source: Middle, archive: Archive, plan: PromptPlan, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(_: Subject) -> list[Prompt]:
        raise KeyboardInterrupt

    monkeypatch.setattr(source, "propose", interrupted)
    with pytest.raises(KeyboardInterrupt):
        propose_prompts(archive, plan)
    assert archive.ledger.counts(stage_of(NAME))["claimed"] == 0


def test_an_unknown_source_is_answered_with_what_was_probably_meant() -> None:
    with pytest.raises(PlanError, match=r"no source of prompts 'propogate'\. Did you mean 'propagate'"):
        registry.check_source("propogate")


def test_what_is_made_must_be_a_source(archive: Archive, plan: PromptPlan, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "SOURCES", {NAME: "nowhere:nothing"})
    monkeypatch.setattr("distill.prompts.sources.load_maker", lambda name: lambda context, options: "a string")
    with pytest.raises(PlanError, match="'middle' is a str without name, fingerprint and propose"):
        propose_prompts(archive, plan)


def test_a_context_reads_a_case_as_the_teacher_will_see_it(archive: Archive, plan: PromptPlan) -> None:
    record = archive.cases()[0]
    subject = SourceContext(archive=archive, plan=plan.label).subject(record, plan.label.classes)
    assert subject.picture(2).shape == (*record.shape_czyx[2:], 3)
