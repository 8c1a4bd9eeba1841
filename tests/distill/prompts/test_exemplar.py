"""A few gold cases are enough to say where the same thing is in others, and that it is not there."""

import runpy
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from distill.errors import PlanError
from distill.label_plan import LabelPlan
from distill.prompts import exemplar
from distill.prompts.exemplar import ExemplarSource, choose_exemplars, exemplar_source
from distill.prompts.exemplar_options import ExemplarOptions
from distill.prompts.sources import SourceContext, Subject
from distill.prompts.variations import vary
from storage import IGNORE, Archive, CaseRecord, ClassInfo, Geometry, LabelHistory

HERE = Path(__file__).parent
SourceContract = runpy.run_path(str(HERE / "source_contract.py"))["SourceContract"]
SMALL = runpy.run_path(str(HERE.parent / "small_archive.py"))
BRIGHT = ClassInfo(id=1, name="bright")
DEPTH = 6
SIDE = (48, 56)


def volume(seed: int, *, shown: bool = True) -> tuple[np.ndarray, np.ndarray]:
    """Return a noisy volume with a bright disc on its middle slices, and where the disc is."""
    rng = np.random.default_rng(seed)
    image = rng.normal(100, 8, (1, DEPTH, *SIDE))
    y, x = np.mgrid[: SIDE[0], : SIDE[1]]
    disc = (y - rng.integers(18, 30)) ** 2 + (x - rng.integers(18, 38)) ** 2 < 100
    mask = np.zeros((DEPTH, *SIDE), bool)
    if shown:
        mask[2:5] = disc
    image[0][mask] += 300
    return image.astype(np.int16), mask


def add_case(archive: Archive, case: str, patient: str, seed: int, *, part: str = "calibration", shown: bool = True) -> None:
    image, mask = volume(seed, shown=shown)
    record = CaseRecord(
        id=case,
        patient=patient,
        shape_czyx=image.shape,  # type: ignore[arg-type]
        dtype="int16",
        modality="MR",
        part=part,  # type: ignore[arg-type]
        geometry=Geometry(spacing_zyx_mm=(1.0, 1.0, 1.0), affine=SMALL["IDENTITY"]),
        fingerprint=f"f{seed}",
    )
    archive.add_case(record, image)
    if part != "archive":
        history = LabelHistory(label_set="gold", classes=(BRIGHT,), made_by="test", fingerprint=f"g{seed}")
        archive[case].write_labels(history, mask.astype(np.uint8))


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Archive:
    archive = Archive.create(str(tmp_path_factory.mktemp("exemplar") / "a.zarr"))
    for n in range(4):
        add_case(archive, f"gold{n}", f"p{n % 2}", n)
    add_case(archive, "test0", "p8", 40, part="test")
    add_case(archive, "new", "p9", 50, part="archive")
    add_case(archive, "empty", "p9", 51, part="archive", shown=False)
    return archive


@pytest.fixture(scope="module")
def context(archive: Archive) -> SourceContext:
    return SourceContext(archive=archive, plan=LabelPlan(classes=(BRIGHT,), teacher="bundled", device="cpu"))


@pytest.fixture(scope="module")
def learnt(context: SourceContext) -> ExemplarSource:
    return exemplar_source(context, ExemplarOptions(variations=1, slices=4, count=4))


def subject_of(context: SourceContext, case: str) -> Subject:
    return context.subject(context.archive[case].record, context.classes)


class TestExemplarIsASource(SourceContract):  # type: ignore[misc,valid-type]
    @pytest.fixture
    def source(self, learnt: ExemplarSource) -> ExemplarSource:
        return learnt

    @pytest.fixture
    def subject(self, context: SourceContext) -> Subject:
        return subject_of(context, "new")


def test_boxes_lie_around_the_thing_on_the_slices_that_have_it(learnt: ExemplarSource, context: SourceContext) -> None:
    _, mask = volume(50)
    boxes = {prompt.slice: prompt.box_xyxy_px for prompt in learnt.propose(subject_of(context, "new")) if prompt.kind == "box"}
    assert set(boxes) == {2, 3, 4}
    y, x = np.nonzero(mask[3])
    truth = (x.min(), y.min(), x.max() + 1, y.max() + 1)
    assert boxes[3] is not None
    assert np.abs(np.array(boxes[3]) - truth).max() < 8


def test_points_lie_on_the_thing(learnt: ExemplarSource, context: SourceContext) -> None:
    _, mask = volume(50)
    points = [(prompt.slice, *prompt.points_xy_px[0]) for prompt in learnt.propose(subject_of(context, "new")) if prompt.kind == "point"]
    assert points
    assert all(mask[z or 0, int(y), int(x)] for z, x, y in points)


def test_a_case_without_the_thing_is_said_not_to_have_it(learnt: ExemplarSource, context: SourceContext) -> None:
    assert [prompt.kind for prompt in learnt.propose(subject_of(context, "empty"))] == ["absent"]


def test_without_presence_a_place_is_named_on_every_slice(context: SourceContext) -> None:
    source = exemplar_source(context, ExemplarOptions(variations=1, slices=4, count=4, presence=False))
    assert len({prompt.slice for prompt in source.propose(subject_of(context, "empty"))}) == DEPTH


def test_an_exemplar_is_prompted_by_what_other_patients_teach(learnt: ExemplarSource, context: SourceContext) -> None:
    learnt.propose(subject_of(context, "gold0"))
    own, all_of_them = learnt._known["p0"], learnt._knowledge("somebody else")
    assert own is not None
    assert all_of_them is not None
    assert own.prototypes is not all_of_them.prototypes


def test_a_single_exemplar_has_no_opinion_about_its_own_patient(context: SourceContext) -> None:
    source = exemplar_source(context, ExemplarOptions(cases=("gold0",), variations=1))
    assert source.propose(subject_of(context, "gold0")) == []
    assert source.propose(subject_of(context, "new"))


def test_cases_that_score_cannot_teach(archive: Archive) -> None:
    with pytest.raises(PlanError, match=r"exemplar\.cases names test0, of which the archive has no gold in the calibration part"):
        choose_exemplars(archive, ExemplarOptions(cases=("gold1", "test0")))


def test_without_gold_the_message_says_what_to_give(tmp_path: Path) -> None:
    with pytest.raises(PlanError, match=r"needs 1 to 10 cases with gold in the calibration part.*ingest\.gold"):
        choose_exemplars(Archive.create(str(tmp_path / "a.zarr")), ExemplarOptions())


def test_exemplars_are_spread_over_patients(archive: Archive) -> None:
    assert {record.patient for record in choose_exemplars(archive, ExemplarOptions(count=2))} == {"p0", "p1"}


def test_other_options_or_gold_give_another_fingerprint(context: SourceContext, learnt: ExemplarSource) -> None:
    assert exemplar_source(context, ExemplarOptions(variations=1, slices=4, count=4)).fingerprint == learnt.fingerprint
    assert exemplar_source(context, ExemplarOptions(variations=1, slices=4, count=3)).fingerprint != learnt.fingerprint


def test_gold_that_is_brought_in_again_asks_for_nothing_anew_and_gold_that_was_corrected_does(tmp_path: Path) -> None:
    archive = Archive.create(str(tmp_path / "a.zarr"))
    add_case(archive, "gold0", "p0", 0)
    context = SourceContext(archive=archive, plan=LabelPlan(classes=(BRIGHT,), teacher="bundled", device="cpu"))
    before = exemplar_source(context, ExemplarOptions()).fingerprint
    gold = archive["gold0"].labels("gold").read()
    touched = LabelHistory(label_set="gold", classes=(BRIGHT,), made_by="test", fingerprint="the file has another time of change")
    archive["gold0"].write_labels(touched, gold)
    assert exemplar_source(context, ExemplarOptions()).fingerprint == before
    gold[3, 20] = 1
    archive["gold0"].write_labels(touched, gold)
    assert exemplar_source(context, ExemplarOptions()).fingerprint != before


def test_gold_without_any_of_the_classes_is_refused(archive: Archive) -> None:
    plan = LabelPlan(classes=(replace(BRIGHT, id=7),), teacher="bundled", device="cpu")
    with pytest.raises(PlanError, match=r"shows any of the classes \[7\] in its gold"):
        exemplar_source(SourceContext(archive=archive, plan=plan), ExemplarOptions(count=2))


def test_another_protocol_for_the_same_weights_gives_another_fingerprint(context: SourceContext, learnt: ExemplarSource) -> None:
    other = SourceContext(archive=context.archive, plan=context.plan)
    other.teacher.profile = replace(other.teacher.profile, normalise="min-max")
    assert exemplar_source(other, ExemplarOptions(variations=1, slices=4, count=4)).fingerprint != learnt.fingerprint


def test_a_class_that_a_single_patient_shows_is_proposed_for_others_and_for_no_case_of_that_patient(tmp_path: Path) -> None:
    archive, rare = Archive.create(str(tmp_path / "a.zarr")), ClassInfo(id=2, name="rare")
    for n in range(2):
        add_case(archive, f"gold{n}", f"p{n}", n)
    add_case(archive, "new", "p9", 50, part="archive")
    ids = archive["gold0"].labels("gold").read()
    ids[2:4, 5:14, 5:14] = rare.id
    archive["gold0"].write_labels(LabelHistory(label_set="gold", classes=(BRIGHT, rare), made_by="test", fingerprint="g"), ids)
    context = SourceContext(archive=archive, plan=LabelPlan(classes=(BRIGHT, rare), teacher="bundled", device="cpu"))
    source = exemplar_source(context, ExemplarOptions(variations=1, slices=3))
    assert {prompt.class_id for prompt in source.propose(subject_of(context, "new"))} == {1, 2}
    assert {prompt.class_id for prompt in source.propose(subject_of(context, "gold0"))} == {1}


def test_exemplars_are_not_encoded_where_nobody_asks(context: SourceContext, monkeypatch: pytest.MonkeyPatch) -> None:
    def encode(_: object) -> None:
        pytest.fail("no case is due, so nothing needs to be encoded")

    monkeypatch.setattr(context.teacher, "encode", encode)
    assert exemplar_source(context, ExemplarOptions(variations=1)).fingerprint


def test_each_exemplar_is_also_seen_in_so_many_other_ways_and_its_mask_moves_along(
    context: SourceContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    shown: list[list[np.ndarray]] = []
    encode = exemplar.encode_slices

    def watched(teacher: object, pictures: list[np.ndarray], *others: object) -> object:
        shown.append(list(pictures))
        return encode(teacher, pictures, *others)

    monkeypatch.setattr(exemplar, "encode_slices", watched)
    source = exemplar_source(context, ExemplarOptions(variations=3, slices=2, count=2, presence=False))
    source.propose(subject_of(context, "new"))
    exemplars = max(shown, key=len)
    slices = len(exemplars) // 4
    assert len(exemplars) == 4 * slices > 4
    assert len({picture.tobytes() for picture in exemplars}) == len(exemplars)


def test_a_variation_moves_picture_and_mask_together() -> None:
    _, mask = volume(3)
    picture = np.repeat(np.where(mask[3], 220, 40).astype(np.uint8)[..., None], 3, axis=2)
    seen = [vary(picture, {1: mask[3]}, np.random.default_rng(n)) for n in range(6)]
    for each in seen:
        bright = each.picture[..., 0] > 110
        assert 2 * (bright & each.masks[1]).sum() / (bright.sum() + each.masks[1].sum()) > 0.9
    assert any((each.masks[1] != mask[3]).mean() > 0.02 for each in seen)


def open_between(archive: Archive, case: str, drawn: tuple[int, ...]) -> None:
    """Give gold of all slices but those that an expert drew 255."""
    ids = archive[case].labels("gold").read()
    ids[[z for z in range(DEPTH) if z not in drawn]] = IGNORE
    archive[case].write_labels(LabelHistory(label_set="gold", classes=(BRIGHT,), made_by="test", fingerprint="open"), ids)


def test_slices_that_nobody_drew_on_teach_nothing_and_a_drawn_one_without_the_thing_that_it_can_be_missing(tmp_path: Path) -> None:
    archive = Archive.create(str(tmp_path / "a.zarr"))
    for n in range(2):
        add_case(archive, f"gold{n}", f"p{n}", n)
        open_between(archive, f"gold{n}", (0, 3))
    context = SourceContext(archive=archive, plan=LabelPlan(classes=(BRIGHT,), teacher="bundled", device="cpu"))
    source = exemplar_source(context, ExemplarOptions(variations=1, slices=2))
    assert [(round(one.height * DEPTH - 0.5), bool(one.seen.masks[1].any())) for one in source._slices] == [(0, False), (3, True)] * 2
    known = source._knowledge("p9")
    assert known is not None
    assert known.cuts[1].peak is not None, "there are slices without it"
    assert source.warning == ""


def test_without_a_drawn_slice_that_lacks_the_thing_nothing_is_said_to_be_without_it(tmp_path: Path) -> None:
    archive = Archive.create(str(tmp_path / "a.zarr"))
    for n in range(2):
        add_case(archive, f"gold{n}", f"p{n}", n)
        open_between(archive, f"gold{n}", (3,))
    add_case(archive, "empty", "p9", 51, part="archive", shown=False)
    context = SourceContext(archive=archive, plan=LabelPlan(classes=(BRIGHT,), teacher="bundled", device="cpu"))
    source = exemplar_source(context, ExemplarOptions(variations=1, slices=4))
    assert len(source._slices) == 2, "one of each case"
    assert source.warning.startswith(f"exemplar has seen no slice without {BRIGHT.name}, so it cannot tell where that is not")
    assert exemplar_source(context, ExemplarOptions(presence=False, slices=4)).warning == "", "nobody asked where it is not"
    assert {prompt.slice for prompt in source.propose(subject_of(context, "empty"))} == set(range(DEPTH))
