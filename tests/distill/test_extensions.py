"""Other packages bring sources and teachers: the examples of docs/extending.md work, and what goes wrong names the package."""

import re
import runpy
import sys
from pathlib import Path
from typing import Any

import pytest

from distill import load_teacher
from distill.engine import label_archive
from distill.errors import ExtensionError, TeacherError
from distill.extensions import SOURCES, TEACHERS, installed
from distill.prompts.registry import load_maker, source_names
from distill.prompts.sources import PromptSource, SourceContext, Subject, make_source
from distill.propose import PromptPlan, propose_prompts
from distill.teachers.base import Teacher
from distill.teachers.checkpoints import inspect_checkpoint
from distill.teachers.foreign import foreign_teachers
from storage import Archive, LabelHistory

HERE = Path(__file__).parent
PAGE = HERE.parents[1] / "docs" / "extending.md"
SMALL = runpy.run_path(str(HERE / "small_archive.py"))
SOURCE_CONTRACT = runpy.run_path(str(HERE / "prompts" / "source_contract.py"))["SourceContract"]
TEACHER_CONTRACT = runpy.run_path(str(HERE / "teacher_contract.py"))["TeacherContract"]
archive_of, plan_for, write_checkpoint, A = SMALL["archive_of"], SMALL["plan_for"], SMALL["write_checkpoint"], SMALL["A"]


def examples() -> list[str]:
    """Return the programs of the page: the source first, then the teacher."""
    return re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)


def declarations() -> dict[str, str]:
    """Return group -> line of the page's entry points."""
    return dict(re.findall(r'\[project\.entry-points\."(.+?)"\]\n(.+)', PAGE.read_text(encoding="utf-8")))


class Installer:
    """Installs packages of one module into a folder on the path, as pip leaves them there."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.folder = folder
        folder.mkdir()
        monkeypatch.syspath_prepend(str(folder))
        self._monkeypatch = monkeypatch

    def __call__(self, package: str, group: str, line: str, code: str = "", version: str = "1.0") -> None:
        module = line.split("=")[1].split(":", maxsplit=1)[0].strip(' "')
        self._monkeypatch.delitem(sys.modules, module, raising=False)
        (self.folder / f"{module}.py").write_text(code, encoding="utf-8")
        metadata = self.folder / f"{package}-{version}.dist-info"
        metadata.mkdir()
        (metadata / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {package}\nVersion: {version}\n", encoding="utf-8")
        (metadata / "entry_points.txt").write_text(f"[{group}]\n{line.replace(chr(34), '')}\n", encoding="utf-8")


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Installer:
    return Installer(tmp_path / "site", monkeypatch)


@pytest.fixture
def with_examples(install: Installer) -> None:
    """Install the two examples of the page, each as a package of its own."""
    source, teacher = examples()
    install("hot-spots-for-samdistill", SOURCES, declarations()[SOURCES], source)
    install("brighter-for-samdistill", TEACHERS, declarations()[TEACHERS], teacher)


@pytest.fixture
def context(tmp_path: Path) -> SourceContext:
    return SourceContext(archive=archive_of(tmp_path / "a", 2), plan=plan_for(write_checkpoint(tmp_path)))


def test_the_examples_are_as_short_as_the_page_promises() -> None:
    lengths = [len([line for line in code.splitlines() if line.strip()]) for code in examples()]
    assert lengths[0] <= 30
    assert lengths[1] <= 40


@pytest.mark.usefixtures("with_examples")
class TestSourceOfThePage(SOURCE_CONTRACT):  # type: ignore[misc, valid-type]
    @pytest.fixture
    def source(self, context: SourceContext) -> PromptSource:
        return make_source("hot-spots", context, {})

    @pytest.fixture
    def subject(self, context: SourceContext) -> Subject:
        return context.subject(context.archive.cases()[0], (A,))


@pytest.mark.usefixtures("with_examples")
class TestTeacherOfThePage(TEACHER_CONTRACT):  # type: ignore[misc, valid-type]
    @pytest.fixture
    def teacher(self) -> Teacher:
        loaded: Teacher = load_teacher("brighter", device="cpu")
        return loaded


class TestOurOwnTeacher(TEACHER_CONTRACT):  # type: ignore[misc, valid-type]
    @pytest.fixture
    def teacher(self, tmp_path: Path) -> Teacher:
        loaded: Teacher = load_teacher(write_checkpoint(tmp_path), device="cpu")
        return loaded


@pytest.mark.usefixtures("with_examples")
def test_both_together_label_an_archive_from_nothing(tmp_path: Path) -> None:
    archive: Archive = archive_of(tmp_path / "b", 2)
    plan = plan_for("brighter", sources=("hot-spots",))
    assert propose_prompts(archive, PromptPlan(sources=("hot-spots",), options={"hot-spots": {"share": 0.1}}, label=plan)).done == 2
    assert label_archive(archive, plan).done == 2
    history: LabelHistory = archive["case00"].labels("teacher/r1").history
    assert history.teacher == "brighter 1"


@pytest.mark.usefixtures("with_examples")
def test_what_packages_bring_stands_behind_our_own() -> None:
    assert source_names()[-1] == "hot-spots"
    assert "a teacher of the package brighter-for-samdistill 1.0" in inspect_checkpoint("brighter").title


def test_a_new_version_of_the_package_has_labels_drawn_anew(install: Installer) -> None:
    install("drawn", TEACHERS, "mine = drawn:load", "def load(device, precision): ...", version="1.0")
    before = inspect_checkpoint("mine").fingerprint
    (install.folder / "drawn-1.0.dist-info" / "METADATA").write_text("Metadata-Version: 2.1\nName: drawn\nVersion: 1.1\n")
    assert inspect_checkpoint("mine").fingerprint != before


@pytest.mark.usefixtures("with_examples")
def test_a_run_depends_on_what_is_installed_and_in_which_version() -> None:
    assert installed() == ["brighter of the package brighter-for-samdistill 1.0", "hot-spots of the package hot-spots-for-samdistill 1.0"]


@pytest.mark.parametrize(
    ("group", "name", "look"),
    [
        pytest.param(SOURCES, "weak", source_names, id="a source by a name of ours"),
        pytest.param(SOURCES, "student", source_names, id="a source by the name of one that proposes"),
        pytest.param(TEACHERS, "bundled", foreign_teachers, id="the bundled teacher"),
        pytest.param(TEACHERS, "vit_b", foreign_teachers, id="an official checkpoint"),
    ],
)
def test_a_name_of_ours_cannot_be_taken(install: Installer, group: str, name: str, look: Any) -> None:
    install("greedy", group, f"{name} = greedy:load")
    with pytest.raises(ExtensionError, match=f"the package greedy 1.0 offers a .* by the name '{name}', which is one of our own"):
        look()


def test_two_packages_cannot_bring_the_same_name(install: Installer) -> None:
    install("first", TEACHERS, "mine = first:load")
    install("second", TEACHERS, "mine = second:load")
    with pytest.raises(ExtensionError, match=r"the package (first|second) 1.0 and the package (first|second) 1.0 both offer a teacher"):
        foreign_teachers()


def test_a_source_that_cannot_be_imported_names_its_package_and_what_was_wrong(install: Installer) -> None:
    install("broken", SOURCES, "mine = broken:make", "import a_module_that_nobody_has")
    with pytest.raises(
        ExtensionError, match=r"source of prompts 'mine' of the package broken 1.0 cannot be imported .*'a_module_that_nobody_has'"
    ):
        load_maker("mine")


@pytest.mark.parametrize(
    ("code", "said"),
    [
        pytest.param("raise OSError('no licence')", "cannot be imported from broken:load: OSError: no licence", id="import"),
        pytest.param("", "cannot be imported from broken:load: AttributeError", id="nothing there"),
        pytest.param("load = 3", r"is a int, and not a function load\(device, precision\)", id="no function"),
        pytest.param(
            "def load(device, precision): raise OSError('no weights')", "could not be loaded on cpu: OSError: no weights", id="fails"
        ),
        pytest.param("def load(device, precision): return 'a'", "is a str without decode, fingerprint, mask_prompt", id="no teacher"),
    ],
)
def test_a_teacher_that_cannot_be_used_names_its_package(install: Installer, code: str, said: str) -> None:
    install("broken", TEACHERS, "mine = broken:load", code)
    with pytest.raises(ExtensionError, match=f"the teacher 'mine' of the package broken 1.0 {said}"):
        load_teacher("mine", device="cpu")


@pytest.mark.usefixtures("with_examples")
@pytest.mark.parametrize("said", [{"profile": "sam"}, {"base": "vit_b"}], ids=["profile", "base"])
def test_what_is_said_of_files_is_refused_for_a_teacher_of_a_package(said: dict[str, str]) -> None:
    with pytest.raises(ExtensionError, match=r"knows its own protocol\. Leave out profile and base"):
        load_teacher("brighter", device="cpu", **said)


@pytest.mark.usefixtures("with_examples")
def test_one_teacher_of_a_package_is_on_one_device() -> None:
    with pytest.raises(TeacherError, match="one teacher computes on one device"):
        load_teacher("brighter", device="cpu,cpu")
