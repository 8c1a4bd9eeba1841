"""Read annotations in COCO's JSON: each box and each segmentation becomes a row of our own schema."""

from collections.abc import Callable, Iterator, Mapping
from typing import Any

from pydantic import BaseModel, ConfigDict, TypeAdapter, ValidationError

from storage.errors import IngestError
from storage.ingest.weak_files import RawRow


class _Foreign(BaseModel):
    # COCO files carry licences, links and fields of each tool's own; only what is named here is looked at.
    model_config = ConfigDict(extra="ignore", frozen=True)


class _Image(_Foreign):
    id: int
    file_name: str = ""
    width: int | None = None
    height: int | None = None
    case: str | None = None
    slice: int | None = None
    slice_axis: str = "k"


class _Category(_Foreign):
    id: int
    name: str


class _Runs(_Foreign):
    counts: str | list[int]
    size: tuple[int, int]


class _Annotation(_Foreign):
    image_id: int
    category_id: int
    bbox: list[float] | None = None
    segmentation: _Runs | list[list[float]] | None = None
    score: float | None = None


_IMAGES = TypeAdapter(list[_Image])
_CATEGORIES = TypeAdapter(list[_Category])


def is_coco(document: object) -> bool:
    """Tell a COCO file from a list of prompts."""
    return isinstance(document, dict) and "annotations" in document


def coco_rows(
    document: Mapping[str, Any], label: str, known: Callable[[int, str], int | None] = lambda _number, _name: None
) -> Iterator[RawRow]:
    """Yield the boxes and masks of a COCO document as raw rows of our schema.

    An image means the case its file is named like; ``case`` and ``slice`` beside ``file_name`` name a slice of a volume.

    Args:
        document: The document.
        label: What messages call it.
        known: Number and name of a category -> id of the class of this name, None if there is none; by default nobody knows names.

    Raises:
        IngestError: ``malformed-json`` if images, categories or annotations cannot be understood.
    """
    try:
        images = {image.id: image for image in _IMAGES.validate_python(document.get("images", []))}
        names = {category.id: category.name for category in _CATEGORIES.validate_python(document.get("categories", []))}
    except ValidationError as error:
        message = f"{label}: images or categories are not as COCO has them: {_place(error)} is missing or of another kind."
        raise IngestError("malformed-json", message) from error
    annotations = document["annotations"]
    if not isinstance(annotations, list):
        kind = "null" if annotations is None else type(annotations).__name__
        message = f"{label}: 'annotations' must be a list, as COCO has it, but is {kind}. Export the annotations once more."
        raise IngestError("malformed-json", message)
    ids = {number: found for number, name in names.items() if (found := known(number, name)) is not None}
    for number, entry in enumerate(annotations, start=1):
        try:
            annotation = _Annotation.model_validate(entry)
            image = images[annotation.image_id]
        except ValidationError as error:
            yield RawRow(number=str(number), error=f"{_place(error)} is missing or not as COCO has it")
        except KeyError:
            yield RawRow(number=str(number), error=f"image_id {entry.get('image_id')} is not among the images")
        else:
            yield from _rows(str(number), annotation, image, names, ids)


def _place(error: ValidationError) -> str:
    """Where the first fault is, such as ``'3.file_name'``."""
    return repr(".".join(str(part) for part in error.errors()[0]["loc"]) or "the entry")


def _rows(number: str, annotation: _Annotation, image: _Image, names: Mapping[int, str], ids: Mapping[int, int]) -> Iterator[RawRow]:
    common: dict[str, Any] = {
        "class_id": ids.get(annotation.category_id, annotation.category_id),
        "slice": image.slice,
        "slice_axis": image.slice_axis,
    }
    common |= {"case": image.case} if image.case is not None else {"image": image.file_name}
    if annotation.category_id in names:
        common["class_name"] = names[annotation.category_id]
    if annotation.score is not None:
        common["confidence"] = annotation.score
    if annotation.bbox:
        yield RawRow(number=number, content=common | {"kind": "box", "box_xywh": annotation.bbox})
    runs = annotation.segmentation
    if isinstance(runs, _Runs):
        yield RawRow(number=number, content=common | {"kind": "mask", "rle": runs.counts, "size_yx": runs.size})
    elif runs:
        yield RawRow(number=number, content=common | {"kind": "mask", "polygons_xy": runs})
    if not annotation.bbox and not runs:
        yield RawRow(number=number, error="the annotation has neither bbox nor segmentation")
