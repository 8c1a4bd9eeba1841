"""What people write about scans is checked before anything is read."""

import pytest

from storage.errors import IngestError
from storage.wording import check_modality, check_pattern


@pytest.mark.parametrize(("word", "found"), [("CT", "CT"), ("mr", "MR"), ("other", "other"), ("unknown", "unknown"), (None, None)], ids=str)
def test_codes_of_dicom_pass_in_any_case_and_free_words_as_they_are(word: str | None, found: str | None) -> None:
    assert check_modality(word) == found


@pytest.mark.parametrize(("word", "guess"), [("MRI", "MR"), ("PET", "PT"), ("USS", "US")])
def test_a_modality_that_is_none_is_answered_with_the_nearest(word: str, guess: str) -> None:
    with pytest.raises(IngestError, match=f"no modality '{word}'. Did you mean {guess}") as caught:
        check_modality(word)
    assert caught.value.reason == "unknown-modality"
    assert "write other or unknown" in str(caught.value)


def test_a_pattern_that_is_no_regular_expression_is_named_with_the_place() -> None:
    with pytest.raises(IngestError, match=r"'\^\(P\[0-9\]\+' is no regular expression: .* at character 2\.") as caught:
        check_pattern("^(P[0-9]+")
    assert "\n" not in str(caught.value)


def test_a_pattern_without_a_group_says_where_brackets_go() -> None:
    with pytest.raises(IngestError, match=r"has no group\. Put round brackets around the part that is the patient"):
        check_pattern("^P[0-9]+")


def test_a_pattern_with_a_group_passes() -> None:
    assert check_pattern("^(SC-.+?)-IM") == "^(SC-.+?)-IM"


def test_a_word_that_is_near_no_code_gets_the_list() -> None:
    with pytest.raises(IngestError, match=r"there is no modality .XX.\. Known: CR, CT, DX"):
        check_modality("XX")
