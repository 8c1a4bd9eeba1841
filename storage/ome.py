"""The metadata of an archive: OME-Zarr 0.5 (NGFF), and beside it one attribute of our own, ``samdistill``.

We write these documents ourselves. ome-zarr's writer takes arrays and metadata in one call, drops the axis units when they are given
as dictionaries, builds a pyramid for labels unless told not to and leaves the version out of ``labels/zarr.json``; and crash safety
needs the metadata after the arrays. A test validates what we write with ome-zarr-models.
"""

import json
from typing import Annotated, Any, Literal, Self

import zarr
from pydantic import BaseModel, ConfigDict, Field

from storage.case import CaseRecord, LabelHistory

NGFF_VERSION: Literal["0.5"] = "0.5"
FORMAT = 1
"""Version of our own attribute and folder layout."""
LEVEL = "0"
"""Path of the only resolution level. Scans are small enough to be viewed whole; a pyramid would add a seventh to every archive."""
MapName = Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]*$")]
"""Name of an array beside the class ids: ``probability``, ``uncertainty``, ``mutual_information``, ``vote``, ..."""
PROBABILITY: MapName = "probability"
UNCERTAINTY: MapName = "uncertainty"


class _Document(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, populate_by_name=True)

    @classmethod
    def read(cls, group: zarr.Group) -> Self:
        """Read the document from a group's attributes; by way of JSON, because only there pydantic takes a list for a tuple."""
        return cls.model_validate_json(json.dumps(group.attrs.asdict()))

    def attributes(self) -> dict[str, Any]:
        """The document as a JSON-ready dictionary."""
        return self.model_dump(mode="json", by_alias=True, exclude_none=True)


class Axis(_Document):
    """One axis of an array."""

    name: Literal["c", "z", "y", "x"]
    type: Literal["channel", "space"]
    unit: Literal["millimeter"] | None = None


class Scale(_Document):
    """Voxel size along every axis."""

    type: Literal["scale"] = "scale"
    scale: tuple[float, ...]


class Dataset(_Document):
    """One resolution level."""

    path: str = LEVEL
    transformations: tuple[Scale] = Field(validation_alias="coordinateTransformations", serialization_alias="coordinateTransformations")


class Multiscale(_Document):
    """An image, as NGFF sees it."""

    name: str
    axes: tuple[Axis, ...]
    datasets: tuple[Dataset]


class LabelColor(_Document):
    """Colour of one class."""

    value: int = Field(validation_alias="label-value", serialization_alias="label-value")
    rgba: tuple[int, int, int, int]


class LabelProperty(_Document):
    """Name of one class."""

    value: int = Field(validation_alias="label-value", serialization_alias="label-value")
    name: str


class LabelSource(_Document):
    """The image that labels belong to, relative to their group."""

    image: str = "../../"


class ImageLabel(_Document):
    """What the values of a label image mean."""

    colors: tuple[LabelColor, ...]
    properties: tuple[LabelProperty, ...]
    source: LabelSource = LabelSource()


class Ome(_Document):
    """The ``ome`` attribute of a group."""

    version: Literal["0.5"] = NGFF_VERSION
    multiscales: tuple[Multiscale] | None = None
    image_label: ImageLabel | None = Field(default=None, validation_alias="image-label", serialization_alias="image-label")
    labels: tuple[str, ...] | None = None


class RootMark(_Document):
    """Our attribute on the archive's root: this is one of ours."""

    format: int = FORMAT


class CaseMark(_Document):
    """Our attribute on a case. It is written after the pixels, so its presence says that they are complete."""

    record: CaseRecord


class LabelMark(_Document):
    """Our attribute on a label set, written after its arrays."""

    history: LabelHistory
    scores: dict[str, float]
    maps: tuple[MapName, ...] = ()
    """Which arrays lie beside the class ids."""


class RootAttributes(_Document):
    """All attributes of the archive's root."""

    samdistill: RootMark = RootMark()


class CaseAttributes(_Document):
    """All attributes of a case's group."""

    ome: Ome
    samdistill: CaseMark


class ListingAttributes(_Document):
    """All attributes of ``labels/``."""

    ome: Ome


class LabelAttributes(_Document):
    """All attributes of a label set's group."""

    ome: Ome
    samdistill: LabelMark


def case_attributes(record: CaseRecord) -> CaseAttributes:
    """Return the attributes of a case's image group."""
    return CaseAttributes(ome=Ome(multiscales=(_multiscale(record.id, record, "czyx"),)), samdistill=CaseMark(record=record))


def label_attributes(record: CaseRecord, history: LabelHistory, scores: dict[str, float], maps: tuple[MapName, ...]) -> LabelAttributes:
    """Return the attributes of one label set's group."""
    meaning = ImageLabel(
        colors=tuple(LabelColor(value=info.id, rgba=info.rgba) for info in history.classes),
        properties=tuple(LabelProperty(value=info.id, name=info.name) for info in history.classes),
    )
    ome = Ome(multiscales=(_multiscale(history.label_set, record, "zyx"),), image_label=meaning)
    return LabelAttributes(ome=ome, samdistill=LabelMark(history=history, scores=scores, maps=maps))


def listing_attributes(paths: list[str]) -> ListingAttributes:
    """Return the attributes of ``labels/``, which lists the label sets of a case."""
    return ListingAttributes(ome=Ome(labels=tuple(paths)))


def _multiscale(name: str, record: CaseRecord, order: str) -> Multiscale:
    # A spacing that was assumed has no unit: a viewer must not show a scale bar for it.
    unit: Literal["millimeter"] | None = "millimeter" if record.geometry.spacing_known else None
    space = tuple(Axis(name=axis, type="space", unit=unit) for axis in ("z", "y", "x"))
    scale = record.geometry.spacing_zyx_mm
    if order == "czyx":
        return Multiscale(
            name=name, axes=(Axis(name="c", type="channel"), *space), datasets=(Dataset(transformations=(Scale(scale=(1.0, *scale)),)),)
        )
    return Multiscale(name=name, axes=space, datasets=(Dataset(transformations=(Scale(scale=scale),)),))
