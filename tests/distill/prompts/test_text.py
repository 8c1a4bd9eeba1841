"""Masks are called what their picture looks like to a CLIP model; the model is the user's, and open_clip is an extra."""

import json
import runpy
import sys
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from safetensors.torch import save_file

from distill.errors import PlanError
from distill.intensity import choose_window
from distill.prompts.sources import Subject
from distill.prompts.text import TextSource, make_text, shown, words_of
from distill.prompts.text_clip import Clip, OpenClip, hash_of
from distill.prompts.text_options import TextOptions
from storage import CaseRecord, ClassInfo, Geometry
from storage.rle import decode

HERE = Path(__file__).parent
SourceContract = runpy.run_path(str(HERE / "source_contract.py"))["SourceContract"]
PointingTeacher = runpy.run_path(str(HERE / "pointing_teacher.py"))["PointingTeacher"]
RED, GREEN = ClassInfo(id=1, name="red-blob"), ClassInfo(id=2, name="green-blob")
RAS = ((1.0, 0.0, 0.0, 0.0), (0.0, 1.0, 0.0, 0.0), (0.0, 0.0, 1.0, 0.0), (0.0, 0.0, 0.0, 1.0))


class Colours:
    """A stand-in that knows the words for three colours; everything else is grey to it."""

    fingerprint = "colours"
    scale = 20.0

    def pictures(self, images: Sequence[np.ndarray]) -> np.ndarray:
        return self._unit(np.stack([image.reshape(-1, 3).astype(float).sum(axis=0) for image in images]))

    def words(self, sentences: Sequence[str]) -> np.ndarray:
        named = {"red": (1, 0, 0), "green": (0, 1, 0), "blue": (0, 0, 1)}
        return self._unit(np.array([next((rgb for name, rgb in named.items() if name in each), (1, 1, 1)) for each in sentences], float))

    def _unit(self, vectors: np.ndarray) -> np.ndarray:
        unit: np.ndarray = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
        return unit


def subject() -> Subject:
    """Return a red square, a green one and a blue one on black."""
    picture = np.zeros((3, 1, 50, 70), np.uint8)
    picture[0, 0, 5:20, 5:20] = picture[1, 0, 5:20, 40:60] = picture[2, 0, 30:45, 20:40] = 255
    geometry = Geometry(spacing_zyx_mm=(1.0, 1.0, 1.0), affine=RAS, spacing_known=False)
    record = CaseRecord(id="c", patient="p", shape_czyx=picture.shape, dtype="uint8", modality="other", geometry=geometry)
    return Subject(record=record, volume_czyx=picture, window=choose_window(record, picture), classes=(RED, GREEN))


def source_for(**options: object) -> TextSource:
    chosen = TextOptions.model_validate(options)
    return TextSource(PointingTeacher(), Colours(), chosen, words_of(chosen.words, (RED, GREEN)))


class TestText(SourceContract):  # type: ignore[misc,valid-type]
    @pytest.fixture
    def source(self) -> TextSource:
        return source_for()

    @pytest.fixture
    def subject(self) -> Subject:
        return subject()


def places(source: TextSource) -> dict[int, set[tuple[int, ...]]]:
    """Class -> which of the three squares its masks cover."""
    found: dict[int, set[tuple[int, ...]]] = {}
    for prompt in source.propose(subject()):
        if prompt.kind == "mask":
            mask = decode(prompt.mask_rle, prompt.mask_size_yx)  # type: ignore[arg-type]
            found.setdefault(prompt.class_id, set()).add(tuple(int(mask[y, x]) for y, x in ((10, 10), (10, 50), (40, 30))))
    return found


def test_each_class_gets_the_mask_that_its_name_describes_and_the_blue_one_is_background() -> None:
    assert places(source_for()) == {1: {(1, 0, 0)}, 2: {(0, 1, 0)}}


def test_words_of_the_recipe_go_before_the_name_of_the_class() -> None:
    assert places(source_for(words={"red-blob": "something blue"})) == {1: {(0, 0, 1)}, 2: {(0, 1, 0)}}


def test_below_the_least_probability_nothing_is_said() -> None:
    assert source_for(least=0.999999).propose(subject()) == []


def test_other_words_or_another_model_are_another_source() -> None:
    plain, other = source_for(), source_for(words={1: ["blue", "red"]})
    assert plain.fingerprint != other.fingerprint
    clip = Colours()
    clip.fingerprint = "others"
    assert TextSource(PointingTeacher(), clip, TextOptions(), {1: ("red",)}).fingerprint != plain.fingerprint


def test_names_of_classes_are_read_as_words() -> None:
    assert words_of({"2": ("cell",)}, (RED, GREEN)) == {1: ("red blob",), 2: ("cell",)}


def test_words_about_no_class_are_refused() -> None:
    with pytest.raises(PlanError, match="describes 'liver', but there is no such class"):
        words_of({"liver": ("liver",)}, (RED,))


def test_a_mask_is_shown_bright_in_a_dim_square_of_its_surroundings() -> None:
    candidate = SimpleNamespace(mask=np.zeros((50, 70), bool), box_xyxy_px=(40, 5, 60, 20))
    candidate.mask[5:20, 40:60] = True
    image = shown(np.full((50, 70, 3), 200, np.uint8), candidate, 0.25)  # type: ignore[arg-type]
    assert image.shape == (30, 30, 3)
    assert image[:3].max() == 0  # the square begins three rows above the picture
    assert image[15, 15, 0] == 200
    assert image[-1, 0, 0] == 60


@pytest.mark.parametrize(
    ("given", "message"),
    [
        pytest.param({"templates": ["no place"]}, "must have one {} where the words go", id="template"),
        pytest.param({"background": []}, "every mask would be some class", id="no background"),
    ],
)
def test_options_that_cannot_be_meant_say_why(given: dict[str, object], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        TextOptions.model_validate(given)


def test_a_checkpoint_must_be_named() -> None:
    with pytest.raises(
        PlanError, match=r"the source text has no checkpoint\.\nAdd prompts: \{text: \{model: ViT-B-32, checkpoint: WEIGHTS\}\}"
    ):
        make_text(SimpleNamespace(classes=(RED,)), TextOptions(model="ViT-B-32"))  # type: ignore[arg-type]


def test_without_open_clip_the_extra_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "open_clip", None)
    with pytest.raises(PlanError, match=r"pip install 'samdistill\[text\]'"):
        OpenClip("ViT-B-32", tmp_path / "weights.pt")


TINY = {
    "embed_dim": 16,
    "vision_cfg": {"image_size": 32, "layers": 1, "width": 32, "head_width": 16, "patch_size": 16},
    "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 1},
}


@pytest.fixture
def tiny(tmp_path: Path) -> tuple[str, Path]:
    """A model of open_clip with random weights in a file; skips where open_clip is not installed."""
    open_clip = pytest.importorskip("open_clip", reason="needs the extra samdistill[text]")
    (tmp_path / "tiny-clip.json").write_text(json.dumps(TINY))
    open_clip.add_model_config(tmp_path / "tiny-clip.json")
    torch.manual_seed(0)
    path = tmp_path / "tiny.pt"
    torch.save(open_clip.create_model("tiny-clip").state_dict(), path)
    return "tiny-clip", path


@pytest.fixture
def folder(tiny: tuple[str, Path], tmp_path: Path) -> Path:
    """The same model in a folder that says what it is."""
    path = tmp_path / "folder"
    path.mkdir()
    (path / "open_clip_config.json").write_text(json.dumps({"model_cfg": TINY, "preprocess_cfg": {}}))
    save_file(torch.load(tiny[1], weights_only=True), path / "open_clip_model.safetensors")
    return path


@pytest.mark.filterwarnings("ignore")
def test_a_model_of_open_clip_answers_with_unit_vectors_of_one_space(tiny: tuple[str, Path]) -> None:
    clip = OpenClip(*tiny)
    assert isinstance(clip, Clip)
    rng = np.random.default_rng(0)
    pictures = clip.pictures([rng.integers(0, 255, (20 + n, 30, 3), np.uint8) for n in range(3)])
    words = clip.words(["a cell", "a liver"])
    assert pictures.shape == (3, 16)
    assert np.linalg.norm(np.concatenate([pictures, words]), axis=1) == pytest.approx(1, abs=1e-5)
    assert not np.allclose(words[0], words[1])


@pytest.mark.filterwarnings("ignore")
def test_a_source_of_open_clip_answers_the_same_twice(tiny: tuple[str, Path]) -> None:
    options = TextOptions(model=tiny[0], checkpoint=tiny[1], least=0.01)
    context = SimpleNamespace(classes=(RED, GREEN), teacher=PointingTeacher())
    first, second = (make_text(context, options) for _ in range(2))  # type: ignore[arg-type]
    assert first.fingerprint == second.fingerprint
    assert first.propose(subject()) == second.propose(subject()) != []


@pytest.mark.filterwarnings("ignore")
def test_weights_of_another_architecture_are_refused_by_name(tiny: tuple[str, Path], tmp_path: Path) -> None:
    torch.save({"visual.nothing": torch.zeros(3)}, tmp_path / "other.pt")
    with pytest.raises(PlanError, match=r"other\.pt does not fit tiny-clip"):
        OpenClip(tiny[0], tmp_path / "other.pt")
    with pytest.raises(PlanError, match="is none that open_clip knows"):
        OpenClip("tiny-clap", tiny[1])
    with pytest.raises(PlanError, match="there is no file at"):
        OpenClip(tiny[0], tmp_path / "missing.pt")


@pytest.mark.filterwarnings("ignore")
def test_a_folder_that_says_what_its_model_is_answers_like_the_model_named(tiny: tuple[str, Path], folder: Path) -> None:
    named, told = OpenClip(*tiny), OpenClip(None, folder)
    picture = np.random.default_rng(0).integers(0, 255, (20, 30, 3), np.uint8)
    assert np.array_equal(named.pictures([picture]), told.pictures([picture]))
    assert np.array_equal(named.words(["a cell"]), told.words(["a cell"]))
    before = told.fingerprint
    (folder / "open_clip_config.json").write_text(json.dumps({"model_cfg": TINY, "preprocess_cfg": {"mean": [0.5, 0.5, 0.5]}}))
    assert OpenClip(None, folder).fingerprint != before


@pytest.mark.parametrize("changed", ["words/config.json", "folder/parts/tokenizer.json", "folder/weights.bin"])
def test_whatever_a_model_is_read_from_makes_it_another_one(tmp_path: Path, changed: str) -> None:
    config = {"model_cfg": {"text_cfg": {"hf_model_name": str(tmp_path / "words")}}}
    for name in ("words/config.json", "folder/parts/tokenizer.json", "folder/weights.bin", "folder/.cache/lock"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("1")
    (tmp_path / "folder/open_clip_config.json").write_text(json.dumps(config))
    before = hash_of(tmp_path / "folder")
    (tmp_path / "folder/.cache/lock").write_text("2")
    assert hash_of(tmp_path / "folder") == before
    (tmp_path / changed).write_text("2")
    assert hash_of(tmp_path / "folder") != before


@pytest.mark.filterwarnings("ignore")
def test_a_folder_without_weights_is_not_asked_at_random(folder: Path) -> None:
    (folder / "open_clip_model.safetensors").unlink()
    with pytest.raises(PlanError, match=r"does not fit open_clip_config\.json: Required pretrained weights"):
        OpenClip(None, folder)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        pytest.param(None, r"is no folder with open_clip_config\.json", id="none"),
        pytest.param({"model_cfg": {}}, "describes no model with model_cfg and text_cfg", id="no words"),
        pytest.param(
            {"model_cfg": {"text_cfg": {"hf_model_name": "some/bert"}}},
            "names the text model some/bert, which open_clip would download",
            id="elsewhere",
        ),
    ],
)
def test_a_folder_that_does_not_hold_all_of_its_model_is_refused(tmp_path: Path, config: object, message: str) -> None:
    pytest.importorskip("open_clip", reason="needs the extra samdistill[text]")
    if config is not None:
        (tmp_path / "open_clip_config.json").write_text(json.dumps(config))
    with pytest.raises(PlanError, match=message):
        OpenClip(None, tmp_path)


def test_a_model_that_would_fetch_its_tokenizer_is_refused(tmp_path: Path) -> None:
    pytest.importorskip("open_clip", reason="needs the extra samdistill[text]")
    (tmp_path / "weights.pt").touch()
    with pytest.raises(PlanError, match=r"which open_clip would download\. Fetch the model's whole folder"):
        OpenClip("ViT-B-16-SigLIP", tmp_path / "weights.pt")


@pytest.mark.filterwarnings("ignore")
def test_words_that_mean_the_same_as_background_to_the_model_are_refused(tiny: tuple[str, Path]) -> None:
    options = TextOptions(model=tiny[0], checkpoint=tiny[1], words={"red-blob": "ground"}, background=("ground",))
    with pytest.raises(
        PlanError, match=r"'ground' means the same as 'ground': no picture could be called it with a probability above 0\.50"
    ):
        make_text(SimpleNamespace(classes=(RED,), teacher=PointingTeacher()), options)  # type: ignore[arg-type]


def test_what_a_class_can_attain_grows_with_the_distance_of_its_words_from_the_background() -> None:
    far, near = source_for().attainable(), source_for(words={"red-blob": "something grey", "green-blob": "something green"}).attainable()
    assert far[1] > 0.99
    assert near[1] == pytest.approx(0.5)
    assert near[2] == pytest.approx(far[2])
