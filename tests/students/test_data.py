"""Patches from the archive: what is read, how it is normalised, who is held out."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from distill.unknown import DISBELIEVED, UNASKED
from storage import IGNORE, Archive, CaseRecord, ClassInfo, Geometry, LabelHistory
from students import augment, data, nets
from students.batches import Batch
from students.errors import TrainingError
from students.preparation import measure_intensities
from students.spec import NetworkPlan, Normalisation, StudentSpec
from students.splits import split_by_patient

EYE = ((1.0, 0.0, 0.0, 0.0), (0.0, 1.0, 0.0, 0.0), (0.0, 0.0, 1.0, 0.0), (0.0, 0.0, 0.0, 1.0))
CLASSES = (ClassInfo(id=3, name="kernel"),)
CASES = [f"train{n}" for n in range(6)]


def record(name: str, patient: str) -> CaseRecord:
    return CaseRecord(
        id=name, patient=patient, shape_czyx=(1, 4, 5, 6), dtype="uint8", geometry=Geometry(spacing_zyx_mm=(1.0, 1.0, 1.0), affine=EYE)
    )


def plan_for(archive: Archive, **changes: Any) -> NetworkPlan:
    records = [archive[case].record for case in CASES]
    plan = nets.plan_network(
        StudentSpec(width=4, batch=3),
        shapes_zyx=[r.shape_czyx[1:] for r in records],
        spacings_zyx_mm=[r.geometry.spacing_zyx_mm for r in records],
        channels=1,
        classes=1,
    )
    return plan.model_copy(update=changes)


def source(archive: Archive, plan: NetworkPlan, cache_bytes: int = 1 << 24, label_set: str = "pseudo/r1") -> data.PatchSource:
    return data.PatchSource(archive, cases=CASES, label_set=label_set, classes=CLASSES, plan=plan, cache_bytes=cache_bytes)


def test_all_cases_of_a_patient_are_on_one_side_of_the_split() -> None:
    records = [record(f"c{n}", f"patient{n // 3}") for n in range(30)]
    training, held = split_by_patient(records, 0.3, seed=1)
    patient = {r.id: r.patient for r in records}
    assert not {patient[c] for c in training} & {patient[c] for c in held}
    assert sorted(training + held) == sorted(patient)
    assert len({patient[c] for c in held}) == 3


def test_the_split_depends_on_the_seed_and_not_on_the_order_of_cases() -> None:
    records = [record(f"c{n}", f"p{n}") for n in range(20)]
    assert split_by_patient(records, 0.2, 5) == split_by_patient(records[::-1], 0.2, 5)
    assert split_by_patient(records, 0.2, 5) != split_by_patient(records, 0.2, 6)


def test_a_single_patient_is_trained_on_and_nobody_is_held_out() -> None:
    assert split_by_patient([record("a", "p"), record("b", "p")], 0.5, 0) == (["a", "b"], [])


@pytest.mark.parametrize("scale", [1e-3, 1.0, 1.7e6], ids=["tiny", "usual", "hippocampus at its worst"])
def test_normalisation_gives_the_same_image_whatever_the_scanner_scale(scale: float) -> None:
    rng = np.random.default_rng(0)
    image = np.where(rng.random((1, 8, 20, 16)) < 0.3, 0, rng.gamma(3, 30, (1, 8, 20, 16))).astype(np.float32)
    rule = Normalisation()
    plain = measure_intensities(image, rule).apply(image)
    scaled = measure_intensities(image * np.float32(scale), rule).apply(image * np.float32(scale))
    np.testing.assert_allclose(scaled, plain, atol=1e-3)
    assert abs(float(plain[image > 0].mean())) < 0.05


@pytest.mark.parametrize("value", [0.0, 7.0], ids=["all zero", "all the same"])
def test_a_constant_volume_becomes_zero_and_not_nan(value: float) -> None:
    image = np.full((1, 3, 4, 5), value, np.float32)
    assert np.abs(measure_intensities(image, Normalisation()).apply(image)).max() < 1e-3


def test_not_a_number_becomes_the_low_end_of_the_range() -> None:
    image = np.random.default_rng(0).gamma(2, 5, (1, 4, 6, 8)).astype(np.float32)
    image[0, 0, 0, :3] = [np.nan, np.inf, -np.inf]
    ready = measure_intensities(image, Normalisation()).apply(image)
    assert np.isfinite(ready).all()
    assert ready[0, 0, 0, 0] == ready.min()
    assert ready[0, 0, 0, 1] == ready.max()


def test_a_batch_is_the_same_each_time_and_differs_between_steps(archive: Archive) -> None:
    plan = plan_for(archive)
    first, again = source(archive, plan).batch(0, 5), source(archive, plan).batch(0, 5)
    assert torch.equal(first.image, again.image)
    assert torch.equal(first.ids, again.ids)
    assert not torch.equal(first.image, source(archive, plan).batch(0, 6).image)


def test_patches_read_from_disk_equal_patches_from_memory(archive: Archive) -> None:
    plan = plan_for(archive, patch_zyx=(8, 16, 8), spacing_zyx_mm=(1.5, 0.8, 1.0))
    kept, read = source(archive, plan), source(archive, plan, cache_bytes=0)
    for case in CASES[:3]:
        a, b = kept._prepare(case), read._prepare(case)
        assert b.image is None
        assert a.image is not None
        assert a.ids is not None
        found = read._read_patch(archive[case], b, [2, 3, 5])
        # A large case measures its intensities on a sample of slices; here that is every slice.
        np.testing.assert_allclose(found.image, data._cut(a.image, [2, 3, 5], plan.patch_zyx, "edge"), atol=1e-5)
        np.testing.assert_array_equal(found.ids, data._cut(a.ids[None], [2, 3, 5], plan.patch_zyx, "ignore")[0])


@pytest.mark.parametrize("by_class", [False, True], ids=["one map", "maps by class"])
def test_what_a_teacher_was_not_asked_about_is_no_background_however_it_is_read(archive: Archive, by_class: bool) -> None:
    classes = (*CLASSES, ClassInfo(id=5, name="shell")) if by_class else CLASSES
    name = f"unasked/{len(classes)}"
    for case in CASES:
        gold = archive[case].labels("gold").read()
        ids, unknown = gold.copy(), np.zeros((len(classes), *gold.shape), np.uint8)
        ids[:4], unknown[-1, :4] = 0, UNASKED
        unknown[0, 9:] = DISBELIEVED
        history = LabelHistory(label_set=name, classes=classes, made_by="test", fingerprint=case)
        archive[case].write_labels(history, ids, maps={"unknown": unknown if by_class else unknown[0]})
    plan = plan_for(archive, patch_zyx=(12, 16, 8), spacing_zyx_mm=(1.5, 0.8, 1.0))
    kept, read = source(archive, plan, label_set=name), source(archive, plan, cache_bytes=0, label_set=name)
    gold = archive[CASES[0]].labels("gold").read()
    held, scanned = kept._prepare(CASES[0]), read._prepare(CASES[0])
    assert held.ids is not None
    for ids in (held.ids, kept.whole(CASES[0])[1]):
        assert (ids[:4] == IGNORE).all()
        assert (ids[4:9] == gold[4:9] // 3).all()
        assert (ids[9:] == IGNORE).all(), "neither background nor what was drawn where the track was lost"
    np.testing.assert_array_equal(
        read._read_patch(archive[CASES[0]], scanned, [0, 3, 5]).ids, data._cut(held.ids[None], [0, 3, 5], plan.patch_zyx, "ignore")[0]
    )
    assert set(scanned.centres_zyx[:, 0]) <= set(range(4, 9))


def test_memory_kept_stays_within_the_byte_budget(archive: Archive) -> None:
    one = 5 * 12 * 24 * 18
    limited = source(archive, plan_for(archive), cache_bytes=2 * one)
    for case in CASES:
        limited._prepare(case)
    kept = [h for h in limited._held.values() if h.image is not None]
    assert 1 <= len(kept) <= 2
    assert sum(h.image.nbytes + h.ids.nbytes for h in kept if h.image is not None and h.ids is not None) <= 2 * one


def test_ids_become_channels_and_strangers_become_ignore(archive: Archive) -> None:
    batch = source(archive, plan_for(archive), label_set="gold").batch(0, 0)
    assert set(np.unique(batch.ids.numpy())) <= {0, 1, IGNORE}
    assert (batch.ids == 1).any()
    other = data.PatchSource(
        archive, cases=CASES, label_set="gold", classes=(ClassInfo(id=9, name="other"),), plan=plan_for(archive), cache_bytes=1 << 24
    )
    assert not (other.batch(0, 0).ids == 1).any()


def test_a_class_with_the_id_of_ignore_is_refused() -> None:
    with pytest.raises(TrainingError, match="255"):
        data._id_lookup((ClassInfo(id=IGNORE, name="wrong"),))


def test_beyond_the_image_labels_are_ignored_and_the_image_repeats_its_edge() -> None:
    image = np.arange(24, dtype=np.float32).reshape(1, 2, 3, 4)
    cut = data._cut(image, [-1, 0, 2], (4, 3, 4), "edge")
    assert cut.shape == (1, 4, 3, 4)
    assert cut[0, 0, 0, 0] == image[0, 0, 0, 2]
    labels = data._cut(image.astype(np.uint8), [-1, 0, 2], (4, 3, 4), "ignore")[0]
    assert (labels[0] == IGNORE).all()
    assert (labels[1:3, :, :2] != IGNORE).all()


def test_most_patches_show_the_object(archive: Archive) -> None:
    patches = source(archive, plan_for(archive, patch_zyx=(8, 8, 8), batch=40), label_set="gold").batch(0, 0)
    assert float((patches.ids == 1).flatten(1).any(1).float().mean()) > 0.6


def test_slices_are_cut_from_single_slice_cases_and_from_volumes_alike(archive: Archive) -> None:
    plan = plan_for(archive, dimensions="2d", patch_zyx=(1, 16, 16))
    assert source(archive, plan).batch(0, 0).image.shape == (3, 1, 1, 16, 16)


def test_single_slices_ask_for_a_2d_net_and_volumes_for_a_3d_one() -> None:
    spec = StudentSpec()
    assert nets.choose_dimensions(spec, [(1, 200, 210)] * 3 + [(30, 40, 50)]) == "2d"
    assert nets.choose_dimensions(spec, [(30, 40, 50)] * 3 + [(1, 200, 210)]) == "3d"
    assert nets.plan_patch("2d", [(1.0, 500.0, 300.0)])[0] == 1


def test_slices_are_halved_until_the_net_sees_where_it_is_and_volumes_three_times() -> None:
    assert nets.plan_depth("2d", (1, 256, 256)) == 6
    assert nets.plan_depth("2d", (1, 96, 512)) == 4
    assert nets.plan_depth("2d", (1, 130, 200)) == 5
    assert nets.plan_depth("2d", (1, 20, 20)) == 4
    assert nets.plan_depth("3d", (200, 256, 256)) == 4
    plan = nets.plan_network(StudentSpec(), shapes_zyx=[(1, 250, 260)] * 3, spacings_zyx_mm=[(1.0, 1.0, 1.0)] * 3, channels=1, classes=1)
    assert plan.patch_zyx == (1, 256, 256)
    assert len(plan.filters) == len(plan.strides) == 6
    assert nets.build_network(plan)(torch.zeros(1, 1, 256, 256)).shape == (1, 2, 256, 256)


def test_thick_slices_keep_their_resolution_until_the_others_match_them() -> None:
    strides, kernels = nets.plan_levels((16, 64, 48), (5.0, 1.0, 1.0), 4)
    assert [s[0] for s in strides] == [1, 1, 1, 2]
    assert kernels[0] == (1, 3, 3)
    assert strides[1] == (1, 2, 2)


def test_augmentation_moves_labels_with_the_image() -> None:
    grid = torch.zeros(4, 1, 12, 20, 16)
    grid[:, :, 4:8, 6:14, 5:11] = 5.0
    batch = Batch(image=grid, ids=(grid[:, 0] > 0).to(torch.uint8), weight=torch.ones(4))
    how = augment.Augmentation(spatial_chance=1, intensity_chance=0, soften_chance=0)
    moved = augment.augment(batch, (2.0, 0.7, 1.0), torch.Generator().manual_seed(3), how)
    assert not torch.equal(moved.image, batch.image)
    inside, outside = moved.ids == 1, moved.ids == 0
    assert float((moved.image[:, 0][inside] > 2.5).float().mean()) > 0.95
    assert float((moved.image[:, 0][outside] < 2.5).float().mean()) > 0.95
    assert (moved.ids == IGNORE).any()


def test_without_a_draw_augmentation_changes_nothing() -> None:
    batch = Batch(image=torch.randn(2, 1, 6, 10, 8), ids=torch.randint(0, 3, (2, 6, 10, 8)).to(torch.uint8), weight=torch.ones(2))
    how = augment.Augmentation(spatial_chance=0, intensity_chance=0, soften_chance=0)
    same = augment.augment(batch, (1.0, 1.0, 1.0), torch.Generator().manual_seed(0), how)
    torch.testing.assert_close(same.image, batch.image, atol=1e-4, rtol=1e-4)
    assert torch.equal(same.ids, batch.ids)


def test_a_turn_is_rigid_in_millimetres_even_in_thick_slices(tmp_path: Path) -> None:
    extent = torch.tensor([30.0, 40.0, 90.0])
    how = augment.Augmentation(spatial_chance=1, scale=0.0)
    normalised = augment._matrices(extent, False, augment.Chance(torch.Generator().manual_seed(0), 1), how)[0]
    in_mm = torch.diag(extent) @ normalised @ torch.diag(1 / extent)
    torch.testing.assert_close(in_mm @ in_mm.T, torch.eye(3), atol=1e-5, rtol=0)
