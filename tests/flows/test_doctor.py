"""The doctor finds what breaks a run later, and names the cure."""

import json
from importlib import metadata

import pytest

from flows import doctor
from flows.showcase import show_checks


def pretend(monkeypatch: pytest.MonkeyPatch, **versions: str) -> None:
    """Let some distributions be installed in other versions."""
    real = metadata.version

    def version(name: str) -> str:
        if name in versions:
            return versions[name]
        return real(name)

    monkeypatch.setattr(metadata, "version", version)


def test_a_shadowed_standard_library_is_a_problem_with_a_command(monkeypatch: pytest.MonkeyPatch) -> None:
    pretend(monkeypatch, argparse="1.4.0", unittest2="1.1.0")
    check = doctor.shadowed_standard_library()
    assert check.verdict == "problem"
    assert check.remedy.endswith("-m pip uninstall -y argparse unittest2")


@pytest.mark.parametrize(("package", "version"), [("fastapi", "0.151.0"), ("sqlalchemy", "2.1.0")])
def test_a_companion_that_breaks_prefect_is_a_problem(package: str, version: str, monkeypatch: pytest.MonkeyPatch) -> None:
    pretend(monkeypatch, **{package: version})
    check = doctor.prefect_companions()
    assert check.verdict == "problem"
    assert package in check.found
    assert "pip install" in check.remedy


def test_this_environment_has_no_shadow_and_all_libraries() -> None:
    assert doctor.shadowed_standard_library().verdict == "ok"
    assert doctor.prefect_companions().verdict == "ok"
    assert doctor.libraries().verdict == "ok"


def test_every_problem_names_its_remedy_and_decides_the_exit_code(capsys: pytest.CaptureFixture[str]) -> None:
    good = doctor.Check(name="python", verdict="ok", found="3.11.7")
    bad = doctor.Check(name="libraries", verdict="problem", found="missing: torch", remedy="pip install torch")
    assert show_checks([good], as_json=False) == 0
    assert show_checks([good, bad], as_json=False) == 1
    assert "libraries: pip install torch" in capsys.readouterr().out


def test_the_findings_are_readable_by_programs(capsys: pytest.CaptureFixture[str]) -> None:
    show_checks([doctor.Check(name="python", verdict="ok", found="3.11.7")], as_json=True)
    assert json.loads(capsys.readouterr().out) == [{"name": "python", "verdict": "ok", "found": "3.11.7", "remedy": ""}]
