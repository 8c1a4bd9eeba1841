"""docs/recipe.md lists every key of a recipe with its default, and no other."""

import re
from collections.abc import Iterator
from pathlib import Path, PurePath
from typing import Any

import pytest
import yaml
from pydantic import BaseModel
from pydantic.fields import FieldInfo

from distill.intensity import ModalityIntensity
from flows.durations import seconds_from
from flows.recipe import Recipe
from flows.recipe_file import TEMPLATE

DOCS = Path(__file__).parents[2] / "docs"
ROW = re.compile(r"^\| `([^`]+)` \| (.+?) \| (.+) \|$")


def listed() -> dict[str, str]:
    """Key -> default, as the page has them."""
    rows = (ROW.match(line) for line in (DOCS / "recipe.md").read_text(encoding="utf-8").splitlines())
    return {row.group(1): row.group(2).strip("`") for row in rows if row}


def fields(model: type[BaseModel], prefix: str = "") -> Iterator[tuple[str, FieldInfo]]:
    """Every key of a block and of the blocks in it; class ids are one key."""
    for name, field in model.model_fields.items():
        yield prefix + name, field
        inner = block_in(field.annotation)
        if inner is not None and inner is not ModalityIntensity:
            yield from fields(inner, f"{prefix}{name}.{'ID.' if name == 'classes' else ''}")


def block_in(annotation: Any) -> type[BaseModel] | None:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    return next((found for part in getattr(annotation, "__args__", ()) if (found := block_in(part))), None)


def test_the_page_lists_the_keys_that_there_are() -> None:
    assert sorted(listed()) == sorted(key for key, _ in fields(Recipe))


@pytest.mark.parametrize(("key", "field"), [pytest.param(key, field, id=key) for key, field in fields(Recipe)])
def test_the_page_gives_the_default_that_a_key_has(key: str, field: FieldInfo) -> None:
    said = listed()[key]
    if field.is_required():
        assert said == "required"
        return
    default = field.get_default(call_default_factory=True, validated_data={})
    if default is None:
        assert said == "none"
    elif isinstance(default, BaseModel):
        stated = {} if said == "all defaults" else yaml.safe_load(said)
        assert type(default).model_validate(stated) == default
    elif key in {"student.budget", "refine.witness_budget"}:
        assert seconds_from(said) == default
    else:
        plain = list(default) if isinstance(default, tuple) else str(default) if isinstance(default, PurePath) else default
        assert yaml.safe_load(said) == plain


def test_template_and_readme_lead_to_the_page() -> None:
    assert "docs/recipe.md" in TEMPLATE
    assert "(docs/recipe.md)" in (DOCS.parent / "README.md").read_text(encoding="utf-8")
