"""Reading and writing recipe files, and saying in one line what is wrong with one."""

import difflib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ValidationError
from yaml.constructor import ConstructorError
from yaml.error import MarkedYAMLError

from flows.errors import RecipeError
from flows.recipe import Recipe

TEMPLATE = """\
# Run with: samdistill run recipe.yaml      (safe to run again: only what is missing is done)
# Every key with its meaning and default: docs/recipe.md
archive: ./archive.zarr                # made by the first run; or s3://bucket/archive.zarr
results: ./results                     # students and reports go here

ingest:
  images: ./images                     # folder of NIfTI, DICOM, PNG, JPEG or TIFF
  modality: MR                         # CT, MR, US, ...
  # channels: {t1: _0000, t2: _0001}   # where each channel of a case is a file: what their names end in
  # patient_from: "^(P[0-9]+)"         # finds the patient in a file's name; without it each file is its own patient
  prompts: ./weak_prompts.json         # boxes and points, see docs/prompts.md
  # gold: {path: ./gold, map: {1: 1}}  # expert labels for calibration and test cases, if there are any
  # split: ./split.csv                 # columns case,part with archive, calibration or test

classes:
  1: {name: organ}                     # a name without blanks; volume_mm3: [1000, 9000] says how large it can be (needs a known spacing)

teacher: {checkpoint: bundled}         # or the path of a Segment Anything checkpoint, or a name of 'samdistill fetch --list'
# teacher: {checkpoint: vit_b, embedding_cache: 20GB}    # keep embeddings for another run over the same pictures; off by default
# intensity: {ct: {windows: [soft-tissue, lung, bone]}}   # what the teacher sees, see docs/intensity.md; by default one window
uncertainty: {boxes: 5, jitter: 0.05, flips: true}
# Fewer than 3 calibration patients with expert labels: 'risk' cannot be set, and default thresholds decide what is believed.
refine: {consistency: 3d, largest_component: true, risk: 0.10}
student: {kind: compact, name: compact, budget: 20min}
evaluate: {arms: [ellipse]}            # also ellipse-student, few-gold, all-gold: each trains another student
"""


def load_recipe(path: str | Path) -> Recipe:
    """Read, check and resolve a recipe.

    Raises:
        RecipeError: in one line: the file, the key, the value found, and what to write instead.
    """
    path = Path(path)
    content = _mapping(path)
    try:
        return Recipe.model_validate(content, context={"folder": path.resolve().parent})
    except ValidationError as error:
        raise RecipeError("\n".join(f"{path}: {_sentence(problem)}" for problem in error.errors())) from None


def save_recipe(path: Path, content: Mapping[str, Any]) -> None:
    """Write a recipe that ``load_recipe`` reads."""
    path.write_text(yaml.safe_dump(dict(content), sort_keys=False, default_flow_style=None, width=140), encoding="utf-8")


class _Loader(yaml.SafeLoader):
    """Refuses a key that stands twice in one place, of which YAML would take the last without a word: a class, perhaps."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:  # noqa: FBT001, FBT002 - its base's shape
        seen: list[Any] = []
        for place, _ in node.value:
            key = self.construct_object(place, deep=True)
            if key in seen and place.tag != "tag:yaml.org,2002:merge":
                raise ConstructorError(None, None, f"the key {key!r} stands there for the second time", place.start_mark)
            seen.append(key)
        return super().construct_mapping(node, deep=deep)


def _mapping(path: Path) -> dict[Any, Any]:
    """Parse the YAML, or say why there is none."""
    if path.is_dir():
        message = f"{path} is a folder; give the recipe file in it. 'samdistill recipe > recipe.yaml' writes one to start from."
        raise RecipeError(message)
    if not path.is_file():
        message = f"{path}: there is no such recipe file. 'samdistill recipe > {path.name}' writes one to start from."
        raise RecipeError(message)
    try:
        # Bytes, as a shell may have written UTF-16 (PowerShell 5 does), which YAML knows by its first two.
        content = yaml.load(path.read_bytes(), _Loader)  # noqa: S506 - a SafeLoader
    except (yaml.YAMLError, ValueError) as error:  # ValueError: a date such as 2026-02-30
        mark = getattr(error, "problem_mark", None)
        where = f" in line {mark.line + 1}" if mark else ""
        cure = "Check indentation and brackets." if isinstance(error, MarkedYAMLError) and not isinstance(error, ConstructorError) else ""
        message = f"{path}: not readable as YAML{where} ({getattr(error, 'problem', None) or error}). {cure}".rstrip()
        raise RecipeError(message) from None
    if content is None:
        message = f"{path}: the recipe is empty. 'samdistill recipe > {path.name}' writes one to start from."
        raise RecipeError(message)
    if not isinstance(content, dict):
        found = "a list" if isinstance(content, list) else "a table or plain text" if isinstance(content, str) else f"only {content!r}"
        message = f"{path}: a recipe has lines such as 'archive: ./archive.zarr', but this file holds {found}. See 'samdistill recipe'."
        raise RecipeError(message)
    return content


def _sentence(problem: Any) -> str:
    """One pydantic problem as: key path, what is wrong, value found, cure."""
    keys = [str(part) for part in problem["loc"]]
    where = ".".join(keys) or "the recipe as a whole"
    match problem["type"]:
        case "extra_forbidden":
            return f"unknown key '{where}'.{_did_you_mean(keys)}"
        case "missing":
            return f"'{where}' is missing. See 'samdistill recipe' for an example; docs/recipe.md lists every key."
        case "value_error" if not keys:  # about several blocks at once, which the sentence names itself
            return str(problem["ctx"]["error"])
        case "value_error":
            return f"'{where}' {_lower_first(str(problem['ctx']['error']))}"
        case "model_type" | "model_attributes_type" if keys:
            return f"'{where}' is {problem['input']!r}, but holds keys of its own. {_as_block(keys, problem['input'])}"
        case _:
            return f"'{where}' is {problem['input']!r}: {_lower_first(problem['msg'])}. See 'samdistill recipe' for an example; docs/recipe.md lists every key."


def _as_block(keys: list[str], found: object) -> str:
    """Say how what was found may be written; the first key of a block is the one that people mean by a single word."""
    known = _fields_at(Recipe, keys)
    value = found if isinstance(found, (str, int, float)) and not isinstance(found, bool) else "..."
    return f"Write {keys[-1]}: {{{known[0]}: {value}}}. Known in it: {', '.join(known)}."


def _did_you_mean(keys: list[str]) -> str:
    """Compare a misspelt key with its siblings."""
    known = _fields_at(Recipe, keys[:-1])
    close = difflib.get_close_matches(keys[-1], known, n=1)
    guess = f" Did you mean '{close[0]}'?" if close else ""
    return f"{guess} Known here: {', '.join(known)}."


def _fields_at(model: type[BaseModel], keys: list[str]) -> list[str]:
    """Names of the keys that a block takes, its own before those that it inherits."""
    for key in keys:
        nested = model.model_fields.get(key)
        inner = _model_in(nested.annotation) if nested else None
        # Class ids and the like are keys of a mapping, not fields: stay at the mapping's value type.
        model = inner or model
    return sorted(model.model_fields, key=lambda name: name not in model.__annotations__)


def _model_in(annotation: Any) -> type[BaseModel] | None:
    """Find the block in ``Block``, ``Block | None`` or ``dict[int, Block]``."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    return next((found for part in getattr(annotation, "__args__", ()) if (found := _model_in(part))), None)


def _lower_first(text: str) -> str:
    return text[:1].lower() + text[1:]
