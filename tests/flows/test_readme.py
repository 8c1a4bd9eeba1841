"""What the README tells people to type can be typed."""

import re
from pathlib import Path

from typer.main import get_command

from flows import cli

README = (Path(__file__).parents[2] / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```sh\n(.*?)```", README, re.DOTALL)


def test_everything_after_the_two_commands_follows_the_activation() -> None:
    assert README.count("-m venv .venv") == 2
    assert README.index(". .venv/bin/activate") > README.index(BLOCKS[1])
    assert README.index(". .venv/bin/activate") < README.index(BLOCKS[2])


def test_every_command_of_the_readme_exists() -> None:
    known = get_command(cli.app).commands  # type: ignore[attr-defined]  # a group has commands
    named = {line.split()[1] for block in BLOCKS[2:] for line in block.splitlines() if line.startswith("samdistill ")}
    assert named >= {"recipe", "run", "predict", "inspect", "fetch"}
    assert named <= set(known)


def test_every_link_of_the_readme_leads_somewhere() -> None:
    links = re.findall(r"\]\(([^)#]+)\)", README)
    assert [link for link in links if "://" not in link and not (Path(__file__).parents[2] / link).exists()] == []
