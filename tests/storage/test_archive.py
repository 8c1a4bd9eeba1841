"""What is particular to a local archive: files, processes, and the catalog beside it."""

import hashlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import zarr

from storage import (
    Archive,
    ArchiveError,
    ArchiveExistsError,
    ArchiveNotFoundError,
    CaseRecord,
    CatalogError,
    ClassInfo,
    Geometry,
    InvalidCaseError,
    LabelHistory,
)
from storage.labels import folder_of
from storage.ome import CaseAttributes

EYE = ((1.0, 0.0, 0.0, 0.0), (0.0, 1.0, 0.0, 0.0), (0.0, 0.0, 1.0, 0.0), (0.0, 0.0, 0.0, 1.0))
HISTORY = LabelHistory(label_set="gold", classes=(ClassInfo(id=1, name="organ"),), made_by="tests")


def record_of(case: str, image: np.ndarray) -> CaseRecord:
    shape = (image.shape[0], image.shape[1], image.shape[2], image.shape[3])
    return CaseRecord(
        id=case, patient=case, shape_czyx=shape, dtype=str(image.dtype), geometry=Geometry(spacing_zyx_mm=(1.0, 1.0, 1.0), affine=EYE)
    )


def image_of(seed: int, shape: tuple[int, ...] = (1, 20, 150, 230)) -> np.ndarray:
    return np.random.default_rng(seed).integers(-1000, 1000, shape).astype(np.int16)


def files_of(folder: Path) -> dict[str, str]:
    return {str(path.relative_to(folder)): hashlib.md5(path.read_bytes()).hexdigest() for path in folder.rglob("*") if path.is_file()}


def fill(archive: Archive, seed: int) -> None:
    image = image_of(seed)
    case = archive.add_case(record_of(f"case-{seed}", image), image)
    ids = (image[0] > 900).astype(np.uint8)
    case.write_labels(HISTORY, ids, probability_kzyx=ids[None] * 200, uncertainty_zyx=ids * 9, scores={"dice": 0.1 * seed})


def test_the_same_input_gives_the_same_files_whatever_was_there_before(tmp_path: Path) -> None:
    once, twice = Archive.create(str(tmp_path / "once")), Archive.create(str(tmp_path / "twice"))
    fill(once, 1)
    fill(twice, 1)
    image = image_of(1)
    twice.add_case(record_of("case-1", image), image, replace=True)
    fill(twice, 1)
    assert files_of(tmp_path / "once") == files_of(tmp_path / "twice")


def test_leftovers_of_a_killed_write_are_swept_away(tmp_path: Path) -> None:
    clean, dirty = Archive.create(str(tmp_path / "clean")), Archive.create(str(tmp_path / "dirty"))
    labels = tmp_path / "dirty" / "cases" / "case-1" / "labels"
    fill(clean, 1)
    fill(dirty, 1)
    for leftover in (labels / "zarr.0123.partial", labels / "gold" / "0" / "zarr.4567.partial"):
        leftover.write_text("half a docu")
    fill(dirty, 1)
    assert files_of(tmp_path / "clean") == files_of(tmp_path / "dirty")


def test_writers_of_different_cases_do_not_disturb_each_other(tmp_path: Path) -> None:
    one_by_one, at_once = Archive.create(str(tmp_path / "one")), Archive.create(str(tmp_path / "many"))
    for seed in range(8):
        fill(one_by_one, seed)
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda seed: fill(at_once, seed), range(8)))
    assert files_of(tmp_path / "one") == files_of(tmp_path / "many")
    assert at_once.cases() == one_by_one.cases()


def test_writers_of_different_label_sets_of_one_case_are_all_listed(tmp_path: Path) -> None:
    archive = Archive.create(str(tmp_path / "a"))
    image = image_of(0, (1, 5, 20, 30))
    archive.add_case(record_of("case-0", image), image)
    names = [f"student/{number}" for number in range(6)]
    with ThreadPoolExecutor(6) as pool:
        list(
            pool.map(lambda name: archive["case-0"].write_labels(replace(HISTORY, label_set=name), np.zeros((5, 20, 30), np.uint8)), names)
        )
    assert archive["case-0"].label_sets() == names
    listed = zarr.open_group(tmp_path / "a", path="cases/case-0/labels", mode="r").attrs["ome"]
    assert listed == {"version": "0.5", "labels": [name.replace("/", ".") for name in names]}


def test_the_fast_codecs_stay_inside_and_read_the_same_values(tmp_path: Path) -> None:
    archive = Archive.create(str(tmp_path / "a"))
    image = image_of(0)
    case = archive.add_case(record_of("case-0", image), image)
    assert type(case.image._async_array.codec_pipeline).__name__ == "ZarrsCodecPipeline"
    assert zarr.config.get("codec_pipeline.path") == "zarr.core.codec_pipeline.BatchedCodecPipeline"
    plain = zarr.open_array(tmp_path / "a", path="cases/case-0/0", mode="r")
    for selection in (np.s_[...], np.s_[:, 7], np.s_[:, 3:11, 40:99, 101:230]):
        assert np.array_equal(np.asarray(plain[selection]), np.asarray(case.image[selection]))


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.filterwarnings("ignore:.*multi-threaded, use of fork:DeprecationWarning")
def test_a_forked_process_reads_on_instead_of_waiting_for_threads_it_did_not_inherit(tmp_path: Path) -> None:
    archive = Archive.create(str(tmp_path / "a"))
    image = image_of(0)
    case = archive.add_case(record_of("case-0", image), image)
    case.read()
    child = os.fork()
    if child == 0:
        signal.alarm(20)
        right = np.array_equal(case.read(), image) and archive["case-0"].id == "case-0"
        os._exit(0 if right else 1)
    assert os.waitpid(child, 0)[1] == 0


def fill_what_is_missing(url: str) -> None:
    archive = Archive.open_or_create(url)
    for seed in range(12):
        if f"case-{seed}" not in archive or "gold" not in archive[f"case-{seed}"].label_sets():
            fill(archive, seed)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.filterwarnings("ignore:.*multi-threaded, use of fork:DeprecationWarning")
def test_an_archive_killed_twenty_times_ends_like_one_that_was_left_alone(tmp_path: Path) -> None:
    killed, left = tmp_path / "killed", tmp_path / "left"
    for delay_s in np.random.default_rng(0).uniform(0.002, 0.2, 20):
        child = os.fork()
        if child == 0:
            fill_what_is_missing(str(killed))
            os._exit(0)
        time.sleep(delay_s)
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
    fill_what_is_missing(str(killed))
    fill_what_is_missing(str(left))
    assert files_of(killed) == files_of(left)
    survivor, undisturbed = Archive.open(str(killed)), Archive.open(str(left))
    assert survivor.cases() == undisturbed.cases()
    assert survivor.catalog.scores("gold") == undisturbed.catalog.scores("gold")


def test_an_archive_whose_catalog_is_gone_says_so_instead_of_looking_empty(tmp_path: Path) -> None:
    fill(Archive.create(str(tmp_path / "a")), 1)
    for part in tmp_path.glob("a.catalog.sqlite*"):
        part.rename(tmp_path / f"elsewhere-{part.name}")
    with pytest.raises(CatalogError, match="rebuild_catalog"):
        Archive.open(str(tmp_path / "a"))


def test_a_new_archive_does_not_inherit_the_catalog_of_an_old_one(tmp_path: Path) -> None:
    fill(Archive.create(str(tmp_path / "a")), 1)
    (tmp_path / "a").rename(tmp_path / "b")
    with pytest.raises(ArchiveExistsError, match="already describes 1 cases"):
        Archive.create(str(tmp_path / "a"))


def test_an_archive_that_is_not_local_asks_for_its_catalog() -> None:
    with pytest.raises(CatalogError, match="`catalog:`"):
        Archive.open_or_create("s3://bucket/archive.zarr")


def test_an_unknown_protocol_is_named_with_what_to_install(tmp_path: Path) -> None:
    with pytest.raises(ArchiveError, match=r"nosuch://.*s3fs"):
        Archive.create("nosuch://bucket/archive.zarr", catalog=f"sqlite:///{tmp_path}/c.sqlite")


def test_a_folder_with_other_things_in_it_is_not_taken_over(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("years of work")
    with pytest.raises(ArchiveExistsError, match=r"is a folder that holds .thesis\.txt."):
        Archive.create(str(tmp_path))


def test_another_zarr_group_is_not_mistaken_for_an_archive(tmp_path: Path) -> None:
    zarr.create_group(tmp_path / "other")
    with pytest.raises(ArchiveError, match="not an archive of samdistill"):
        Archive.open(str(tmp_path / "other"))


def test_an_archive_of_a_newer_format_is_refused(tmp_path: Path) -> None:
    zarr.create_group(tmp_path / "newer", attributes={"samdistill": {"format": 99}})
    with pytest.raises(ArchiveError, match=r"format 99.*Upgrade"):
        Archive.open(str(tmp_path / "newer"))


def test_an_assumed_spacing_has_no_unit(tmp_path: Path) -> None:
    archive = Archive.create(str(tmp_path / "a"))
    image = image_of(0, (3, 1, 20, 30))
    record = replace(record_of("picture", image), geometry=Geometry(spacing_zyx_mm=(1.0, 1.0, 1.0), affine=EYE, spacing_known=False))
    archive.add_case(record, image)
    ome = CaseAttributes.read(zarr.open_group(tmp_path / "a", path="cases/picture", mode="r")).ome
    assert ome.multiscales is not None
    assert {axis.unit for axis in ome.multiscales[0].axes} == {None}


@pytest.mark.parametrize("name", ["", "/r1", "a.b/c", "pseudo/", "pseudo/../x", "pseudo/.r1", "ä"])
def test_a_label_set_name_that_could_not_be_read_back_from_its_folder_is_refused(name: str) -> None:
    with pytest.raises(InvalidCaseError, match="not usable"):
        folder_of(name)


def test_storage_imports_neither_torch_nor_prefect() -> None:
    program = "import sys, storage; sys.exit(bool({'torch', 'prefect', 'monai'} & set(sys.modules)))"
    subprocess.run([sys.executable, "-c", program], check=True, cwd=Path(__file__).parents[2])


@pytest.mark.parametrize("opened", [Archive.open, Archive.create, Archive.open_or_create], ids=["open", "create", "open or create"])
@pytest.mark.parametrize("thing", ["folder", "file"])
def test_a_place_with_something_else_is_refused_as_what_it_is(opened: Callable[[str], Archive], thing: str, tmp_path: Path) -> None:
    place = tmp_path / "a.zarr"
    if thing == "folder":
        place.mkdir()
        (place / "scan.png").touch()
    else:
        place.touch()
    said = "it is a folder that holds 'scan.png'" if thing == "folder" else "it is a file"
    with pytest.raises(ArchiveError, match=f"exists and is not an archive: {said}. Choose another path") as caught:
        opened(str(place))
    assert not isinstance(caught.value, ArchiveNotFoundError)
