"""One label set of one case: writing it so that half of it is never seen, and reading it back."""

import math
import re
from collections.abc import Iterable, Mapping
from functools import cached_property
from typing import Any

import numpy as np
import zarr
from jaxtyping import Shaped
from zarr.abc.codec import BytesBytesCodec

from storage.case import IGNORE, CaseRecord, LabelHistory
from storage.errors import InvalidCaseError
from storage.layout import choose_layout, label_codec
from storage.ome import LEVEL, PROBABILITY, UNCERTAINTY, LabelAttributes, label_attributes
from storage.store import LazyArray, Store, group_at

_MAP_NAME = re.compile(r"[a-z][a-z0-9_]*")
_SAFE_NAME = re.compile(r"[A-Za-z0-9_-]+(/[A-Za-z0-9][A-Za-z0-9._-]*)?")


def folder_of(label_set: str) -> str:
    """Return the folder name of a label set: ``pseudo/r1`` lies in ``pseudo.r1``, because NGFF wants label groups side by side.

    Raises:
        InvalidCaseError: if the name could not be turned back. The first part holds no dot, so the first dot is the slash.
    """
    if not _SAFE_NAME.fullmatch(label_set):
        message = (
            f"label set name {label_set!r} is not usable: it must be one or two parts of letters, digits, '_' or '-' joined by one '/', "
            "such as 'gold', 'pseudo/r1' or 'student/unet-1.0'."
        )
        raise InvalidCaseError(message)
    return label_set.replace("/", ".", 1)


class Labels:
    """One label set of one case. Cheap to hold: arrays are opened when they are first asked for."""

    def __init__(self, store: Store) -> None:
        """Remember the store of the label set's group; use :meth:`storage.Case.labels` to get one."""
        self._store = store
        self._arrays: dict[str, LazyArray] = {}

    @property
    def ids(self) -> zarr.Array[Any]:
        """Class ids ``(z, y, x)``: 0 background, 1.. classes, 255 nobody should learn here."""
        return self._open(LEVEL)

    @property
    def probability(self) -> zarr.Array[Any] | None:
        """Probability ``(k, z, y, x)`` as uint8, 255 = certain, ``k`` in the order of ``history.classes``; None where not kept."""
        return self.map(PROBABILITY)

    @property
    def uncertainty(self) -> zarr.Array[Any] | None:
        """Entropy ``(z, y, x)`` as uint8, 255 = ln 2; None where not kept."""
        return self.map(UNCERTAINTY)

    @property
    def maps(self) -> tuple[str, ...]:
        """Names of the arrays that lie beside the class ids."""
        return self._attributes.samdistill.maps

    def map(self, name: str) -> zarr.Array[Any] | None:
        """Return an array that lies beside the class ids, as uint8; None where it was not kept.

        Label sets of teachers have ``vote`` (share of the ensemble's members that say yes, 255 = all) and ``mutual_information``
        (how much of the entropy comes from members contradicting each other, 255 = ln 2): ``(z, y, x)`` of a label set of one class,
        ``(k, z, y, x)`` in the order of ``history.classes`` of one of several. :meth:`class_map` reads one class of either.
        """
        return self._open(name) if name in self.maps else None

    def class_map(self, name: str, class_id: int) -> Shaped[np.ndarray, "z y x"] | None:
        """Return what a map says about one class, as uint8; None where the map was not kept, or the label set is not about the class.

        Label sets of several classes from before maps were kept by class have one for all of them, with the largest value at each
        voxel: it is then what each class gets.
        """
        stored, order = self.map(name), [info.id for info in self.history.classes]
        if stored is None or class_id not in order:
            return None
        return np.asarray(stored[order.index(class_id)] if stored.ndim == 4 else stored[...])

    @property
    def history(self) -> LabelHistory:
        """Where these labels came from."""
        return self._attributes.samdistill.history

    @property
    def scores(self) -> dict[str, float]:
        """Numbers that were known when the labels were written, such as agreement within the ensemble; only finite ones."""
        return dict(self._attributes.samdistill.scores)

    def read(self) -> Shaped[np.ndarray, "z y x"]:
        """Return all class ids ``(z, y, x)``."""
        return np.asarray(self.ids[...])

    @cached_property
    def _attributes(self) -> LabelAttributes:
        return LabelAttributes.read(zarr.open_group(self._store, mode="r"))

    def _open(self, name: str) -> zarr.Array[Any]:
        return self._arrays.setdefault(name, LazyArray(self._store, name)).open()


def write_label_arrays(
    store: Store, record: CaseRecord, history: LabelHistory, arrays: Mapping[str, np.ndarray], scores: Mapping[str, float]
) -> None:
    """Fill the empty group at the root of ``store``: arrays first, attributes last.

    Args:
        store: The label set's own place, writable and empty.
        record: The case it belongs to.
        history: Where the labels came from.
        arrays: ``0`` and, if there are any, ``probability``, ``uncertainty`` and other maps; already checked.
        scores: Numbers to keep with the labels; those that are not finite are left out, since JSON cannot hold them.
    """
    for name, array in arrays.items():
        write_array(store, name, array, "kzyx"[-array.ndim :], label_codec())
    finite = {key: float(value) for key, value in scores.items() if math.isfinite(value)}
    maps = tuple(name for name in arrays if name != LEVEL)
    document = label_attributes(record, history, finite, maps)
    group_at(store).attrs.put(document.attributes())


def write_array(store: Store, name: str, array: np.ndarray, axes: str, codec: BytesBytesCodec) -> None:
    """Create and fill one array, shard by shard. The same input gives the same bytes."""
    layout = choose_layout(array.shape, array.dtype)
    zarr.create_array(
        store,
        name=name,
        shape=array.shape,
        dtype=array.dtype,
        chunks=layout.chunks,
        shards=layout.shards,
        compressors=codec,
        fill_value=0,
        dimension_names=tuple(axes),
    )[...] = array


def check_labels(record: CaseRecord, history: LabelHistory, arrays: Mapping[str, np.ndarray]) -> None:
    """Refuse arrays that do not fit the case or the classes.

    Raises:
        InvalidCaseError: naming the case, the label set, and what does not fit.
    """
    where = f"case {record.id}, label set {history.label_set}"
    ids, zyx = arrays[LEVEL], record.shape_czyx[1:]
    if ids.dtype not in (np.uint8, np.uint16):
        message = f"{where}: class ids must be uint8 or uint16, but are {ids.dtype}."
        raise InvalidCaseError(message)
    for name, array in arrays.items():
        allowed = _shapes_of(name, zyx, len(history.classes))
        if array.shape not in allowed:
            message = f"{where}: array {name!r} must have shape {' or '.join(map(str, allowed))}, but has {array.shape}. Axes are z, y, x."
            raise InvalidCaseError(message)
        if name != LEVEL and array.dtype != np.uint8:
            message = f"{where}: array {name!r} must be uint8, but is {array.dtype}."
            raise InvalidCaseError(message)
    _check_ids(where, history, ids)


def _shapes_of(name: str, zyx: tuple[int, ...], classes: int) -> tuple[tuple[int, ...], ...]:
    """Return the shapes that an array may have: probabilities are by class, ids and entropy are not, other maps either."""
    if name == PROBABILITY:
        return ((classes, *zyx),)
    return (zyx,) if name in (LEVEL, UNCERTAINTY) else (zyx, (classes, *zyx))


def check_map_names(history: LabelHistory, names: Iterable[str]) -> None:
    """Refuse names that no map can have.

    Raises:
        InvalidCaseError: naming the label set and the name.
    """
    for name in names:
        if not _MAP_NAME.fullmatch(name):
            message = (
                f"label set {history.label_set}: a map cannot be called {name!r}. "
                "Use small letters, digits and '_', beginning with a letter, such as 'vote'."
            )
            raise InvalidCaseError(message)


def _check_ids(where: str, history: LabelHistory, ids: np.ndarray) -> None:
    named = [info.id for info in history.classes]
    if len(set(named)) != len(named) or not all(0 < value < IGNORE for value in named):
        message = f"{where}: class ids must differ and lie between 1 and {IGNORE - 1}, but are {named}."
        raise InvalidCaseError(message)
    found = np.flatnonzero(np.bincount(ids.ravel(), minlength=1))
    strangers = sorted(set(found.tolist()) - {0, IGNORE, *named})
    if strangers:
        message = f"{where}: the array holds {strangers[:8]}, but the history names only the classes {named}. Add them to history.classes."
        raise InvalidCaseError(message)
