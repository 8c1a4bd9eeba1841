"""Gold beside pseudo-labels, and cases without any label: which may be learnt from, and in which share."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file

from storage import IGNORE, Archive, ClassInfo, LabelHistory
from students import compact, gold, load_student
from students.checkpoint import read_card
from students.data import PatchSource
from students.errors import GoldLeakError, TrainingError
from students.evaluate import EvaluationPlan, evaluate, unseen_cases
from students.learning import GoldSpec, Learning
from students.mixing import MixedSource, dealt
from students.nets import plan_network
from students.report import write_report
from students.spec import NetworkPlan, StudentSpec

MakeArchive = Callable[..., Archive]
CLASSES = (ClassInfo(id=3, name="kernel"),)
TINY = StudentSpec(
    name="tiny", budget_seconds=None, steps=2, width=4, batch=2, threads=1, validations=2, device="cpu", mixed_precision=False
)


def plan(archive: Archive, batch: int = 4) -> NetworkPlan:
    record = archive["train0"].record
    return plan_network(
        TINY.model_copy(update={"batch": batch}),
        shapes_zyx=[record.shape_czyx[1:]],
        spacings_zyx_mm=[record.geometry.spacing_zyx_mm],
        channels=1,
        classes=1,
    )


def source(archive: Archive, cases: list[str], label_set: str | None, *, soft: bool = False) -> PatchSource:
    return PatchSource(archive, cases=cases, label_set=label_set, classes=CLASSES, plan=plan(archive), cache_bytes=1 << 24, soft=soft)


def mixed(archive: Archive, how: GoldSpec, *, soft: bool = False, unlabeled: bool = True) -> MixedSource:
    return MixedSource(
        batch=4,
        labeled=source(archive, ["train0", "train1"], "pseudo/r1", soft=soft),
        gold=source(archive, ["train2"], "gold", soft=soft),
        unlabeled=source(archive, ["train3"], None, soft=soft) if unlabeled else None,
        how=how,
        unlabeled_share=0.25,
    )


def train(archive: Archive, workdir: Path, spec: StudentSpec = TINY, **more: object) -> compact.TrainedStudent:
    arguments: dict[str, object] = {"label_set": "pseudo/r1", "classes": CLASSES, "spec": spec, "workdir": workdir} | more
    return compact.train(archive, **arguments)  # type: ignore[arg-type]


@settings(max_examples=50, deadline=None)
@given(share=st.floats(0.01, 1), batch=st.integers(1, 9), steps=st.integers(1, 60))
def test_a_kind_has_its_share_after_any_number_of_steps(share: float, batch: int, steps: int) -> None:
    counts = [dealt(share, batch, step) for step in range(steps)]
    assert abs(sum(counts) - share * batch * steps) < 1 + 1e-6
    assert max(counts) - min(counts) <= 1
    assert max(counts) <= batch


@settings(max_examples=10, deadline=None)
@given(share=st.sampled_from([0.25, 0.5, 0.75]), step=st.integers(0, 40), soft=st.booleans())
def test_gold_patches_carry_their_weight_and_unlabeled_ones_no_label(archive: Archive, share: float, step: int, soft: bool) -> None:
    mixture = mixed(archive, GoldSpec(share=share, weight=3.0), soft=soft)
    counts, batch = mixture.mixture(step, 0.0), mixture.batch(5, step)
    assert counts.gold + counts.labeled + counts.unlabeled == 4
    assert batch.weight.tolist() == [1.0] * counts.labeled + [3.0] * counts.gold + [1.0] * counts.unlabeled
    assert (batch.ids[counts.labeled + counts.gold :] == IGNORE).all()
    assert (batch.ids[: counts.labeled + counts.gold] != IGNORE).any()
    assert torch.equal(batch.image, mixture.batch(5, step).image)
    assert (batch.soft is not None) == soft


def test_late_in_training_gold_stands_alone_where_that_is_asked(archive: Archive) -> None:
    mixture = mixed(archive, GoldSpec(share=0.25, alone_from=0.6))
    assert mixture.mixture(0, 0.59).labeled > 0
    assert mixture.mixture(0, 0.6).labeled == 0
    assert mixture.mixture(0, 0.6).unlabeled == mixture.mixture(0, 0.59).unlabeled
    assert mixed(archive, GoldSpec(), unlabeled=False).mixture(7, 1 - 1e-9).labeled == 2


def test_a_student_learns_from_gold_and_its_card_says_whose(archive: Archive, tmp_path: Path) -> None:
    done = train(archive, tmp_path, gold=["train2"])
    assert read_card(done.path).gold_cases == ("train2",)
    assert "train2" not in (*done.card.training_cases, *done.card.validation_cases)
    assert done.card.validation_cases == ()
    assert "p-train2" in done.card.training_patients
    assert train(archive, tmp_path / "plain").card.gold_cases == ()


def test_gold_alone_is_enough_to_learn_from(archive: Archive, tmp_path: Path) -> None:
    done = train(archive, tmp_path, cases=[], gold=["train1", "train2"])
    assert (done.card.training_cases, done.card.gold_cases) == ((), ("train1", "train2"))


@pytest.mark.parametrize("change", ["cases", "labels", "share"])
def test_other_gold_makes_another_student_and_the_same_gold_the_same(archive: Archive, tmp_path: Path, change: str) -> None:
    first = train(archive, tmp_path, gold=["train2"])
    assert not train(archive, tmp_path, gold=["train2", "train2"]).fresh
    match change:
        case "cases":
            assert train(archive, tmp_path, gold=["train2", "train3"]).fresh
        case "share":
            learning = Learning(gold=GoldSpec(share=0.75))
            assert train(archive, tmp_path, TINY.model_copy(update={"learning": learning}), gold=["train2"]).fresh
        case "labels":
            ids, history = archive["train2"].labels("gold").read(), archive["train2"].labels("gold").history
            changed = LabelHistory(label_set="gold", classes=CLASSES, made_by="test", fingerprint="corrected")
            archive["train2"].write_labels(changed, ids)
            assert train(archive, tmp_path, gold=["train2"]).card.fingerprint != first.card.fingerprint
            archive["train2"].write_labels(history, ids)


def test_the_same_seed_gives_the_same_weights_with_everything_on(archive: Archive, tmp_path: Path) -> None:
    learning = Learning(targets="soft", confidence=1, consistency=0.5, gold=GoldSpec(alone_from=0.5, weight=2))
    spec = TINY.model_copy(update={"steps": 4, "learning": learning, "batch": 4})
    kinds = {"cases": ["train0", "train1"], "gold": ["train2"], "unlabeled": ["train3", "train0", "test0"]}
    one, two = (train(archive, tmp_path / name, spec, **kinds) for name in "ab")
    weights = load_file(one.path / "model.safetensors")
    assert all(torch.equal(weights[key], value) for key, value in load_file(two.path / "model.safetensors").items())
    assert all(torch.isfinite(value).all() for value in weights.values())
    assert one.card.unlabeled_cases == ("train3",), "what is labelled already, and other parts, are left out"
    assert "p-train3" in one.card.training_patients


@pytest.mark.parametrize("dimensions", ["2d", "3d"])
def test_a_case_that_is_too_large_to_keep_is_learnt_from_alike(archive: Archive, tmp_path: Path, dimensions: str) -> None:
    learning = Learning(targets="soft", consistency=0.5)
    spec = TINY.model_copy(update={"learning": learning, "batch": 4, "dimensions": dimensions, "cache_bytes": 0})
    done = train(archive, tmp_path, spec, cases=["train0"], gold=["train2"], unlabeled=["train3"])
    case = archive["test0"]
    assert np.isfinite(load_student(done.path).predict(case.read(), case.spacing_zyx_mm).probability).all()


def test_gold_of_the_test_and_calibration_parts_is_refused_by_name(archive: Archive, tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match="cases test0, test1 belong to the test part, whose gold only scores"):
        train(archive, tmp_path, gold=["train1", "test1", "test0"])
    with pytest.raises(TrainingError, match="case calib0 belongs to the calibration part, whose gold sets thresholds"):
        train(archive, tmp_path, gold=["calib0"])


def test_a_patient_who_also_scores_is_refused(make_archive: MakeArchive, tmp_path: Path) -> None:
    own = make_archive(tmp_path, train=2, test=1)
    image = own["train0"].read()
    own.add_case(replace(own["train0"].record, id="again", patient="p-test0", fingerprint="again"), image)
    with pytest.raises(TrainingError, match=r"case again belongs to patients with other cases in the calibration or test part \(test0"):
        gold.check_gold(own, ["again"])
    own.add_case(replace(own["train0"].record, id="bare", patient="p-bare", fingerprint="bare"), image)
    with pytest.raises(TrainingError, match="case bare: no gold labels to learn from"):
        gold.check_gold(own, ["bare"])


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 99), fewer=st.integers(1, 5))
def test_more_gold_patients_of_a_seed_include_the_fewer(archive: Archive, seed: int, fewer: int) -> None:
    some, more = (gold.gold_cases(archive, patients=count, seed=seed) for count in (fewer, fewer + 1))
    assert len(some) == fewer
    assert set(some) < set(more)
    assert {archive[case].record.part for case in more} == {"archive"}


def test_more_patients_than_there_are_is_an_error_that_says_how_many(archive: Archive) -> None:
    with pytest.raises(TrainingError, match="asks for 7 patients, but the archive part has gold of 6"):
        gold.gold_cases(archive, patients=7)


def test_a_case_whose_gold_was_learnt_from_does_not_score(archive: Archive, tmp_path: Path) -> None:
    done = train(archive, tmp_path, gold=["train2"])
    with pytest.raises(GoldLeakError, match="train2"):
        unseen_cases(archive, load_student(done.path), EvaluationPlan(cases=("train2",)))


def test_the_report_names_the_gold_that_was_learnt_from(archive: Archive, tmp_path: Path) -> None:
    done = train(archive, tmp_path, TINY.model_copy(update={"name": "taught-by-gold"}), gold=["train2"])
    found = evaluate(archive, load_student(done.path), EvaluationPlan())
    assert found.gold_learnt == ("train2",)
    page = write_report(found, archive, tmp_path / "report.html").read_text(encoding="utf-8")
    assert "labels of 1 training case (" in page
    assert "none of which is scored" in page
