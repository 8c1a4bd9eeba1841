"""What an archive must do wherever its bytes are: one contract, inherited by a local folder and by an fsspec URL."""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from uuid import uuid4

import numpy as np
import pytest
import zarr

from storage import (
    IGNORE,
    Archive,
    ArchiveError,
    ArchiveExistsError,
    ArchiveNotFoundError,
    CaseNotFoundError,
    CaseRecord,
    Catalog,
    ClassInfo,
    Geometry,
    InvalidCaseError,
    LabelHistory,
    LabelSetNotFoundError,
    rebuild_catalog,
)

AFFINE = ((0.7, 0.0, 0.0, -10.0), (0.0, 0.8, 0.0, 5.0), (0.0, 0.0, 2.5, 1.5), (0.0, 0.0, 0.0, 1.0))
HISTORY = LabelHistory(
    label_set="pseudo/r1",
    classes=(ClassInfo(id=1, name="anterior"), ClassInfo(id=2, name="posterior", rgba=(10, 20, 30, 255))),
    made_by="tests",
    parameters={"boxes": 5, "jitter": 0.05, "flips": True, "name": "x", "levels": [0.1, 0.2]},
    parents=("teacher/r1",),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """Where a test may put an archive."""

    url: str
    catalog: str | None


def make_image(shape_czyx: tuple[int, int, int, int] = (1, 9, 31, 23), seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(-1000, 3000, shape_czyx).astype(np.int16)


def make_record(case: str, image: np.ndarray, **changes: object) -> CaseRecord:
    shape = (image.shape[0], image.shape[1], image.shape[2], image.shape[3])
    geometry = Geometry(spacing_zyx_mm=(2.5, 0.8, 0.7), affine=AFFINE, nifti={"sform_code": 1, "pixdim": [1.0, 0.7]})
    record = CaseRecord(id=case, patient=f"patient-of-{case}", shape_czyx=shape, dtype=str(image.dtype), geometry=geometry, modality="MR")
    return replace(record, **changes)  # type: ignore[arg-type]  # replace checks the names


def make_ids(shape_zyx: tuple[int, ...]) -> np.ndarray:
    ids = np.zeros(shape_zyx, dtype=np.uint8)
    ids[2:5, 4:20, 3:9] = 1
    ids[2:5, 4:20, 9:14] = 2
    ids[5, 4:20, 3:14] = IGNORE
    return ids


class ArchiveContract:
    """Inherit, and give a fixture ``place``."""

    @pytest.fixture
    def archive(self, place: Place) -> Archive:
        return Archive.create(place.url, catalog=place.catalog)

    def test_a_case_comes_back_with_every_voxel_and_every_word_of_its_record(self, archive: Archive, place: Place) -> None:
        image = make_image()
        record = make_record("case-1", image, attributes={"sex": "F", "age_years": 61, "dose": 1.5}, part="test")
        archive.add_case(record, image)
        found = Archive.open(place.url, catalog=place.catalog, mode="r")["case-1"]
        assert replace(found.record, fingerprint="") == record
        assert found.image.dtype == np.int16
        assert np.array_equal(found.read(), image)
        assert np.array_equal(found.read_slice(4), image[:, 4])
        assert np.array_equal(found.read_block(3, 7), image[:, 3:7])

    @pytest.mark.parametrize("dtype", ["uint8", "int16", "uint16", "int32", "float32", "float64"])
    def test_intensities_keep_their_native_dtype(self, archive: Archive, dtype: str) -> None:
        image = (make_image() % 200).astype(dtype)
        case = archive.add_case(make_record("case-1", image), image)
        assert case.read().dtype == np.dtype(dtype)
        assert np.array_equal(case.read(), image)

    @pytest.mark.parametrize(
        "shape",
        [
            pytest.param((1, 35, 51, 33), id="hippocampus crop: one chunk"),
            pytest.param((3, 1, 700, 900), id="colour picture"),
            pytest.param((1, 70, 130, 190), id="more slices than a shard"),
            pytest.param((2, 1, 1, 1), id="one voxel per channel"),
        ],
    )
    def test_every_shape_is_cut_and_put_together_again(self, archive: Archive, shape: tuple[int, int, int, int]) -> None:
        image = make_image(shape)
        case = archive.add_case(make_record("case-1", image), image)
        assert np.array_equal(case.read(), image)
        assert np.array_equal(case.read_slice(shape[1] - 1), image[:, -1])

    def test_labels_come_back_with_maps_history_and_scores(self, archive: Archive) -> None:
        image = make_image()
        case = archive.add_case(make_record("case-1", image), image)
        ids = make_ids(image.shape[1:])
        probability = np.stack([ids, ids + 1])
        scores = {"dice": 0.8, "undefined": math.nan}
        case.write_labels(HISTORY, ids, probability_kzyx=probability, uncertainty_zyx=ids // 2, scores=scores)
        labels = archive["case-1"].labels("pseudo/r1")
        assert np.array_equal(labels.read(), ids)
        assert labels.probability is not None
        assert np.array_equal(np.asarray(labels.probability[...]), probability)
        assert labels.uncertainty is not None
        assert np.array_equal(np.asarray(labels.uncertainty[...]), ids // 2)
        assert labels.history == HISTORY
        assert labels.scores == {"dice": 0.8}
        recorded = archive.catalog.scores("pseudo/r1")["case-1"]
        assert recorded["dice"] == pytest.approx(0.8)
        assert math.isnan(recorded["undefined"])

    def test_more_maps_lie_beside_the_labels_by_name(self, archive: Archive) -> None:
        image = make_image()
        case = archive.add_case(make_record("case-1", image), image)
        ids = make_ids(image.shape[1:])
        case.write_labels(HISTORY, ids, uncertainty_zyx=ids, maps={"vote": ids * 2, "mutual_information": ids * 3})
        labels = archive["case-1"].labels("pseudo/r1")
        vote, uncertainty = labels.map("vote"), labels.map("uncertainty")
        assert labels.maps == ("uncertainty", "vote", "mutual_information")
        assert vote is not None
        assert uncertainty is not None
        assert np.array_equal(np.asarray(vote[...]), ids * 2)
        assert np.array_equal(np.asarray(uncertainty[...]), ids)
        assert labels.map("unknown") is None
        case.write_labels(HISTORY, ids)
        assert case.labels("pseudo/r1").map("vote") is None

    def test_a_map_may_say_something_else_of_each_class(self, archive: Archive) -> None:
        image = make_image()
        case = archive.add_case(make_record("case-1", image), image)
        ids = make_ids(image.shape[1:])
        apart = np.stack([ids * 2, ids * 3])
        case.write_labels(HISTORY, ids, maps={"vote": apart, "unknown": ids})
        labels = archive["case-1"].labels("pseudo/r1")
        for key, own in ((1, apart[0]), (2, apart[1])):
            vote, unknown = labels.class_map("vote", key), labels.class_map("unknown", key)
            assert vote is not None
            assert unknown is not None
            assert np.array_equal(vote, own)
            assert np.array_equal(unknown, ids)
        assert labels.class_map("vote", 3) is None
        assert labels.class_map("mutual_information", 1) is None
        with pytest.raises(InvalidCaseError, match="'uncertainty' must have shape"):
            case.write_labels(HISTORY, ids, uncertainty_zyx=apart)
        with pytest.raises(InvalidCaseError, match="'vote' must have shape"):
            case.write_labels(HISTORY, ids, maps={"vote": np.stack([ids])})

    @pytest.mark.parametrize("name", ["0", "Vote", "../vote", ""])
    def test_a_map_is_called_by_a_plain_name(self, archive: Archive, name: str) -> None:
        image = make_image()
        case = archive.add_case(make_record("case-1", image), image)
        ids = make_ids(image.shape[1:])
        with pytest.raises(InvalidCaseError, match="a map cannot be called"):
            case.write_labels(HISTORY, ids, maps={name: ids})
        with pytest.raises(InvalidCaseError, match="'vote' must have shape"):
            case.write_labels(HISTORY, ids, maps={"vote": ids[1:]})
        assert case.label_sets() == []

    def test_rewriting_a_label_set_leaves_nothing_of_the_old_one(self, archive: Archive) -> None:
        image = make_image()
        case = archive.add_case(make_record("case-1", image), image)
        ids = make_ids(image.shape[1:])
        case.write_labels(HISTORY, ids, uncertainty_zyx=ids, scores={"old": 1.0})
        case.write_labels(HISTORY, np.zeros_like(ids), scores={"new": 1.0})
        labels = case.labels("pseudo/r1")
        assert not labels.read().any()
        assert labels.uncertainty is None
        assert archive.catalog.scores("pseudo/r1") == {"case-1": {"new": 1.0}}

    def test_label_sets_are_listed_and_deleted_one_by_one(self, archive: Archive) -> None:
        image = make_image()
        case = archive.add_case(make_record("case-1", image), image)
        for name in ("pseudo/r1", "gold", "student/unet-1.0"):
            case.write_labels(replace(HISTORY, label_set=name), make_ids(image.shape[1:]))
        assert case.label_sets() == ["gold", "pseudo/r1", "student/unet-1.0"]
        case.delete_labels("gold")
        case.delete_labels("gold")
        assert case.label_sets() == ["pseudo/r1", "student/unet-1.0"]
        with pytest.raises(LabelSetNotFoundError, match=r"no label set 'gold'. It has: pseudo/r1, student/unet-1\.0"):
            case.labels("gold")

    def test_cases_are_sorted_filtered_and_paged(self, archive: Archive) -> None:
        for number, (part, modality) in enumerate([("archive", "MR"), ("test", "MR"), ("archive", "CT")]):
            image = make_image(seed=number)
            case = archive.add_case(make_record(f"case-{2 - number}", image, part=part, modality=modality), image)
            if modality == "MR":
                case.write_labels(HISTORY, make_ids(image.shape[1:]))
        assert [record.id for record in archive.cases()] == ["case-0", "case-1", "case-2"]
        assert [record.id for record in archive.cases(part="archive")] == ["case-0", "case-2"]
        assert [record.id for record in archive.cases(modality="MR")] == ["case-1", "case-2"]
        assert [record.id for record in archive.cases(with_labels="pseudo/r1", part="test")] == ["case-1"]
        assert [record.id for record in archive.cases(limit=1, after="case-0")] == ["case-1"]
        assert len(archive) == 3
        assert "case-1" in archive
        assert "case-9" not in archive

    def test_adding_the_same_case_again_keeps_its_labels_and_its_part(self, archive: Archive) -> None:
        image = make_image()
        case = archive.add_case(make_record("case-1", image), image)
        case.write_labels(HISTORY, make_ids(image.shape[1:]))
        archive.catalog.set_part({"case-1": "calibration"})
        again = archive.add_case(make_record("case-1", image), image)
        assert again.label_sets() == ["pseudo/r1"]
        assert again.record.part == "calibration"

    def test_other_pixels_under_the_same_id_are_refused_unless_they_shall_replace(self, archive: Archive) -> None:
        image, other = make_image(), make_image((1, 4, 20, 30), seed=1)
        archive.add_case(make_record("case-1", image), image).write_labels(HISTORY, make_ids(image.shape[1:]))
        with pytest.raises(InvalidCaseError, match="case-1: the archive holds other pixels under this id"):
            archive.add_case(make_record("case-1", other), other)
        case = archive.add_case(make_record("case-1", other), other, replace=True)
        assert np.array_equal(case.read(), other)
        assert case.label_sets() == []

    def test_a_misspelt_case_names_the_one_that_was_meant(self, archive: Archive) -> None:
        image = make_image()
        archive.add_case(make_record("hippocampus_001", image), image)
        with pytest.raises(CaseNotFoundError, match="Did you mean 'hippocampus_001'"):
            archive["hipocampus_001"]

    def test_pixels_that_contradict_the_record_are_refused(self, archive: Archive) -> None:
        image = make_image()
        record = make_record("case-1", image)
        with pytest.raises(InvalidCaseError, match=r"the record says \(1, 9, 31, 23\) int16, but the pixels are \(1, 9, 23, 31\)"):
            archive.add_case(record, image.swapaxes(2, 3))
        with pytest.raises(InvalidCaseError, match="float32"):
            archive.add_case(record, image.astype(np.float32))
        assert len(archive) == 0

    def test_labels_that_do_not_fit_are_refused_and_the_old_ones_stay(self, archive: Archive) -> None:
        image = make_image()
        case = archive.add_case(make_record("case-1", image), image)
        ids = make_ids(image.shape[1:])
        case.write_labels(HISTORY, ids)
        with pytest.raises(InvalidCaseError, match=r"array '0' must have shape \(9, 31, 23\), but has \(9, 23, 31\)"):
            case.write_labels(HISTORY, ids.swapaxes(1, 2))
        with pytest.raises(InvalidCaseError, match=r"holds \[7\], but the history names only the classes \[1, 2\]"):
            case.write_labels(HISTORY, np.full_like(ids, 7))
        with pytest.raises(InvalidCaseError, match="must be uint8 or uint16, but are int64"):
            case.write_labels(HISTORY, ids.astype(np.int64))
        with pytest.raises(InvalidCaseError, match=r"'probability' must have shape \(2, 9, 31, 23\)"):
            case.write_labels(HISTORY, ids, probability_kzyx=ids[None])
        with pytest.raises(InvalidCaseError, match="'uncertainty' must be uint8"):
            case.write_labels(HISTORY, ids, uncertainty_zyx=ids.astype(np.float32))
        with pytest.raises(InvalidCaseError, match=r"'a/b/c' is not usable"):
            case.write_labels(replace(HISTORY, label_set="a/b/c"), ids)
        assert np.array_equal(case.labels("pseudo/r1").read(), ids)

    def test_an_archive_is_not_made_twice_and_not_opened_where_there_is_none(self, archive: Archive, place: Place) -> None:
        with pytest.raises(ArchiveExistsError, match="already"):
            Archive.create(place.url, catalog=place.catalog)
        with pytest.raises(ArchiveNotFoundError, match="samdistill ingest"):
            Archive.open(f"{place.url}-elsewhere", catalog=place.catalog)
        assert Archive.open_or_create(place.url, catalog=place.catalog).url == archive.url

    def test_an_archive_opened_for_reading_cannot_be_changed(self, archive: Archive, place: Place) -> None:
        image = make_image()
        archive.add_case(make_record("case-1", image), image)
        reader = Archive.open(place.url, catalog=place.catalog, mode="r")
        with pytest.raises(ArchiveError, match="mode='r'"):
            reader.add_case(make_record("case-2", image), image)
        with pytest.raises(ArchiveError, match="mode='r'"):
            reader["case-1"].write_labels(HISTORY, make_ids(image.shape[1:]))

    @pytest.mark.parametrize("step", ["pixels", "attributes", "catalog row"])
    def test_a_case_whose_write_was_killed_is_not_there_and_is_simply_written_again(
        self, archive: Archive, step: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        image = make_image()
        with monkeypatch.context() as patch:
            _crash_at(step, patch)
            with pytest.raises(_KilledError):
                archive.add_case(make_record("case-1", image), image)
        assert "case-1" not in archive
        case = archive.add_case(make_record("case-1", image), image)
        assert np.array_equal(case.read(), image)

    @pytest.mark.parametrize("step", ["pixels", "attributes", "catalog row"])
    def test_a_label_set_whose_rewrite_was_killed_is_not_there_and_is_simply_written_again(
        self, archive: Archive, step: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        image = make_image()
        case = archive.add_case(make_record("case-1", image), image)
        ids = make_ids(image.shape[1:])
        case.write_labels(HISTORY, np.zeros_like(ids))
        with monkeypatch.context() as patch:
            _crash_at(step, patch)
            with pytest.raises(_KilledError):
                case.write_labels(HISTORY, ids, uncertainty_zyx=ids)
        assert case.label_sets() == []
        case.write_labels(HISTORY, ids)
        assert np.array_equal(case.labels("pseudo/r1").read(), ids)
        assert case.labels("pseudo/r1").uncertainty is None

    def test_a_lost_catalog_is_rebuilt_from_the_archive(self, archive: Archive, place: Place, new_catalog: Callable[[], str]) -> None:
        image = make_image()
        case = archive.add_case(make_record("case-1", image), image)
        case.write_labels(HISTORY, make_ids(image.shape[1:]), scores={"dice": 0.5})
        rebuilt = rebuild_catalog(place.url, catalog=new_catalog())
        assert rebuilt.cases() == archive.cases()
        assert rebuilt["case-1"].labels("pseudo/r1").history == HISTORY
        assert rebuilt.catalog.scores("pseudo/r1") == archive.catalog.scores("pseudo/r1")

    def test_images_and_labels_are_valid_ngff(self, archive: Archive) -> None:
        from ome_zarr_models.v05 import Image
        from ome_zarr_models.v05.image_label import ImageLabel
        from ome_zarr_models.v05.labels import Labels

        image = make_image()
        case = archive.add_case(make_record("case-1", image), image)
        ids = make_ids(image.shape[1:])
        case.write_labels(HISTORY, ids, probability_kzyx=np.stack([ids, ids]), uncertainty_zyx=ids, maps={"vote": ids})
        group = zarr.open_group(archive._store, path="cases/case-1", mode="r")
        multiscale = Image.from_zarr(group).attributes.ome.multiscales[0]
        assert [axis.name for axis in multiscale.axes] == ["c", "z", "y", "x"]
        assert [getattr(axis, "unit", None) for axis in multiscale.axes] == [None, "millimeter", "millimeter", "millimeter"]
        assert multiscale.datasets[0].coordinateTransformations[0].model_dump()["scale"] == [1.0, 2.5, 0.8, 0.7]
        assert Labels.from_zarr(zarr.open_group(archive._store, path="cases/case-1/labels", mode="r")).attributes.ome.labels == [
            "pseudo.r1"
        ]
        label = ImageLabel.from_zarr(zarr.open_group(archive._store, path="cases/case-1/labels/pseudo.r1", mode="r"))
        meaning = label.attributes.ome.image_label
        assert meaning is not None
        assert [color.label_value for color in meaning.colors or ()] == [1, 2]


class _KilledError(BaseException):
    """Stands for SIGKILL: nothing catches it."""


def _crash_at(step: str, patch: pytest.MonkeyPatch) -> None:
    def die(*_args: object, **_kwargs: object) -> None:
        raise _KilledError

    if step == "pixels":
        patch.setattr(zarr.Array, "__setitem__", die)
    elif step == "attributes":
        patch.setattr("zarr.core.attributes.Attributes.put", die)
    else:
        patch.setattr(Catalog, "add_case", die)
        patch.setattr(Catalog, "add_label_set", die)


@pytest.fixture
def new_catalog(tmp_path: Path) -> Callable[[], str]:
    return lambda: f"sqlite:///{tmp_path / uuid4().hex}.sqlite"


class TestLocalFolder(ArchiveContract):
    @pytest.fixture
    def place(self, tmp_path: Path) -> Place:
        return Place(url=str(tmp_path / "archive.zarr"), catalog=None)


class TestFsspecUrl(ArchiveContract):
    @pytest.fixture
    def place(self, tmp_path: Path) -> Place:
        return Place(url=f"memory://{uuid4().hex}.zarr", catalog=f"sqlite:///{tmp_path}/catalog.sqlite")
