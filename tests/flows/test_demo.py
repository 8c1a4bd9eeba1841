"""The generated archive: hard enough to mean something, the same everywhere."""

from pathlib import Path

import numpy as np
import pytest

from flows import demo
from flows.errors import DemoError
from flows.recipe_file import load_recipe


@pytest.mark.parametrize("seed", range(4))
def test_the_organ_is_one_piece_of_a_believable_volume(seed: int) -> None:
    from scipy import ndimage

    scan = demo.draw_scan(seed)
    assert ndimage.label(scan.mask_zyx)[1] == 1
    volume_mm3 = scan.mask_zyx.sum() * np.prod(demo.SPACING_ZYX_MM)
    assert 3000 < volume_mm3 < 25000


def test_a_threshold_does_not_solve_it() -> None:
    scan = demo.draw_scan(1)
    levels = np.quantile(scan.image_zyx, np.linspace(0.5, 0.99, 50))
    dices = [
        2 * ((scan.image_zyx > level) & scan.mask_zyx).sum() / ((scan.image_zyx > level).sum() + scan.mask_zyx.sum()) for level in levels
    ]
    assert max(dices) < 0.85


def test_a_seed_draws_the_same_scan_again_and_another_one_another() -> None:
    assert np.array_equal(demo.draw_scan(3).image_zyx, demo.draw_scan(3).image_zyx)
    assert not np.array_equal(demo.draw_scan(3).mask_zyx, demo.draw_scan(4).mask_zyx)


def test_boxes_lie_on_every_fourth_slice_and_a_few_per_cent_off() -> None:
    mask = demo.draw_scan(0).mask_zyx
    boxes = demo.weak_boxes("a", mask, np.random.default_rng(0))
    slices = [int(str(box["slice"])) for box in boxes]
    assert set(np.diff(slices[:-1])) == {4}
    assert len(slices) < 0.4 * mask.any(axis=(1, 2)).sum()


def test_the_folder_holds_a_recipe_that_reads_and_a_second_call_keeps_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(demo, "PARTS", ("archive", "test"))
    steps: list[tuple[int, int]] = []
    recipe_file = demo.make_demo(tmp_path / "d", progress=lambda done, total: steps.append((done, total)))
    assert steps == [(1, 2), (2, 2)]
    assert load_recipe(recipe_file).student.name == "demo"
    before = (tmp_path / "d" / "weak_prompts.json").stat().st_mtime_ns
    assert demo.make_demo(tmp_path / "d", progress=lambda done, total: None) == recipe_file
    assert (tmp_path / "d" / "weak_prompts.json").stat().st_mtime_ns == before


def test_a_folder_with_other_things_in_it_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "thesis.docx").write_text("irreplaceable")
    with pytest.raises(DemoError, match="Name another folder"):
        demo.make_demo(tmp_path, progress=lambda done, total: None)


def test_a_demonstration_that_was_stopped_before_its_recipe_is_written_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(demo, "PARTS", ("archive",))
    demo.make_demo(tmp_path / "d", progress=lambda done, total: None).unlink()
    assert demo.make_demo(tmp_path / "d", progress=lambda done, total: None).is_file()
