"""What being a source of prompts means: inherit, and give a source and a subject. Read with ``runpy``, as tests are no package."""

from dataclasses import replace

import pytest

from distill.prompts.sources import PromptSource, Subject
from distill.propose import as_proposed


class SourceContract:
    """Holds for every source, ours and others'."""

    @pytest.fixture
    def source(self) -> PromptSource:
        raise NotImplementedError

    @pytest.fixture
    def subject(self) -> Subject:
        raise NotImplementedError

    def test_it_is_a_source(self, source: PromptSource) -> None:
        assert isinstance(source, PromptSource)
        assert source.name
        assert source.fingerprint

    def test_the_same_case_gets_the_same_prompts(self, source: PromptSource, subject: Subject) -> None:
        assert source.propose(subject) == source.propose(subject)

    def test_it_proposes_something_where_there_is_something(self, source: PromptSource, subject: Subject) -> None:
        assert source.propose(subject)

    def test_it_speaks_only_about_the_case_and_the_classes_it_is_asked_about(self, source: PromptSource, subject: Subject) -> None:
        assert as_proposed(source.name, subject, source.propose(subject))  # raises otherwise

    def test_it_says_nothing_about_no_class(self, source: PromptSource, subject: Subject) -> None:
        assert source.propose(replace(subject, classes=())) == []

    def test_boxes_lie_in_the_picture_and_enclose_something(self, source: PromptSource, subject: Subject) -> None:
        _, _, height, width = subject.record.shape_czyx
        for prompt in source.propose(subject):
            if prompt.box_xyxy_px is not None and prompt.axis == "z":
                x0, y0, x1, y1 = prompt.box_xyxy_px
                assert 0 <= x0 < x1 <= width
                assert 0 <= y0 < y1 <= height

    def test_confidence_is_a_probability(self, source: PromptSource, subject: Subject) -> None:
        assert all(0 <= prompt.confidence <= 1 for prompt in source.propose(subject))

    def test_it_does_not_change_the_volume(self, source: PromptSource, subject: Subject) -> None:
        before = subject.volume_czyx.copy()
        source.propose(subject)
        assert (subject.volume_czyx == before).all()
