"""Official checkpoints on the command line, and what a recipe may say about them, about the cache and about intensities."""

from collections.abc import Callable
from pathlib import Path

import pytest

from distill.teachers import fetch as fetching
from flows import cli
from flows.console import ERR
from flows.errors import RecipeError
from flows.plans import label_plan
from flows.recipe_file import load_recipe
from flows.sizes import bytes_from

SMALLEST = "archive: ./archive.zarr\nclasses: {1: {name: organ}}\n"
WriteRecipe = Callable[[str], Path]


def ask(*words: str) -> int:
    with pytest.raises(SystemExit) as ended:
        cli.main(list(words))
    return int(ended.value.code or 0)


def test_the_list_names_every_file_its_profile_and_the_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("SAMDISTILL_CACHE", str(tmp_path))
    assert ask("fetch", "--list") == 0
    said = capsys.readouterr().out
    assert all(name in said for name in fetching.OFFICIAL)
    assert "mobile-sam" in said
    assert str(tmp_path)[:20] in said


def test_a_misspelt_name_is_one_line_and_exit_code_1(capsys: pytest.CaptureFixture[str]) -> None:
    assert ask("fetch", "vit_bb") == 1
    said = capsys.readouterr().err
    assert said.startswith("error: no official checkpoint 'vit_bb'. Did you mean 'vit_b'?")
    assert said.count("\n") == 1


def test_without_a_network_the_command_says_in_one_line_where_to_put_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def unreachable(*_: object, **__: object) -> None:
        raise OSError(101, "Network is unreachable")

    monkeypatch.setenv("SAMDISTILL_CACHE", str(tmp_path))
    monkeypatch.setattr(fetching.urllib.request, "urlopen", unreachable)
    assert ask("fetch", "vit_b") == 1
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert f"put it as sam_vit_b_01ec64.pth into {tmp_path / 'checkpoints'}" in said
    assert "https://dl.fbaipublicfiles.com/segment_anything/sam_vit_b_01ec64.pth" in said


def test_a_recipe_may_name_an_official_checkpoint(write_recipe: WriteRecipe) -> None:
    assert load_recipe(write_recipe(SMALLEST + "teacher: {checkpoint: vit_b}\n")).teacher.checkpoint == "vit_b"


def test_a_size_alone_turns_the_cache_on_beside_the_archive(write_recipe: WriteRecipe, tmp_path: Path) -> None:
    assert label_plan(load_recipe(write_recipe(SMALLEST))).embedding_cache is None
    plan = label_plan(load_recipe(write_recipe(SMALLEST + "teacher: {embedding_cache: 20GB}\n"))).embedding_cache
    assert plan is not None
    assert (plan.folder, plan.budget_bytes, plan.storage) == (f"{tmp_path / 'archive.zarr'}.embeddings", 20 * 10**9, "fp32")


def test_the_cache_of_an_archive_elsewhere_lies_in_the_users_cache(
    write_recipe: WriteRecipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SAMDISTILL_CACHE", str(tmp_path / "c"))
    text = "archive: s3://b/a.zarr\ncatalog: 'sqlite:///c.sqlite'\nclasses: {1: {name: organ}}\n"
    plan = label_plan(load_recipe(write_recipe(text + "teacher: {embedding_cache: {size: 1GiB, precision: fp16}}\n"))).embedding_cache
    assert plan is not None
    assert (plan.folder, plan.budget_bytes, plan.storage) == (str(tmp_path / "c" / "embeddings"), 2**30, "fp16")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        pytest.param("teacher: {embedding_cache: much}", "'teacher.embedding_cache.size' must be a size such as 500MB", id="size"),
        pytest.param(
            "teacher: {embedding_cache: {size: 1GB, precision: int8}}", "'teacher.embedding_cache.precision' is 'int8'", id="precision"
        ),
        pytest.param("intensity: {ct: {windows: [[240, -160]]}}", "'intensity.ct.windows' must be two rising numbers", id="window"),
        pytest.param("intensity: {ct: {window: [[0, 1]]}}", "unknown key 'intensity.ct.window'. Did you mean 'windows'?", id="key"),
        pytest.param("intensity: {channels: both}", "'intensity.channels' is 'both'", id="channels"),
    ],
)
def test_a_wrong_value_is_one_line_with_its_key(write_recipe: WriteRecipe, text: str, said: str) -> None:
    with pytest.raises(RecipeError) as caught:
        load_recipe(write_recipe(SMALLEST + text + "\n"))
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


def test_what_a_recipe_says_about_intensities_reaches_the_engine(write_recipe: WriteRecipe) -> None:
    recipe = load_recipe(write_recipe(SMALLEST + "intensity: {ct: {windows: [soft-tissue, lung, bone]}, channels: 'channel:0'}\n"))
    assert label_plan(recipe).intensity.ct.windows[1] == (-1350.0, 150.0)
    assert label_plan(recipe).intensity.channels == "channel:0"


@pytest.mark.parametrize(("text", "size"), [("500MB", 5e8), ("20GB", 2e10), ("1.5TiB", 1.5 * 2**40), ("1 kib", 1024), (77, 77), ("9B", 9)])
def test_sizes_are_read_as_people_write_them(text: object, size: float) -> None:
    assert bytes_from(text) == size


@pytest.mark.parametrize("text", ["", "0GB", "-5GB", "5 XB", None, "GB"])
def test_what_is_no_size_is_refused(text: object) -> None:
    with pytest.raises(ValueError, match="must be a size"):
        bytes_from(text)


def test_a_name_that_looks_like_markup_is_a_misspelt_name_too(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(ERR, "_force_terminal", True)
    assert ask("fetch", "[/vit_b]") == 1
    assert "no official checkpoint '[/vit_b]'. Did you mean 'vit_b'?" in capsys.readouterr().err
