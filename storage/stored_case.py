"""One case in an archive: reading its pixels, listing and writing its label sets."""

from collections.abc import Mapping
from contextlib import suppress
from typing import Any

import numpy as np
import zarr
from jaxtyping import Shaped

from storage.case import CaseRecord, LabelHistory
from storage.catalog import Catalog
from storage.errors import LabelSetNotFoundError
from storage.labels import Labels, check_labels, check_map_names, folder_of, write_label_arrays
from storage.ome import LEVEL, PROBABILITY, UNCERTAINTY, listing_attributes
from storage.store import LazyArray, Store, below, check_writable, group_at, remove_group, sweep_unfinished

CASES = "cases"
"""The group that holds one group per case."""
LABELS = "labels"
"""The group of a case that holds one group per label set; NGFF fixes the name."""


class Case:
    """One case of an archive. Cheap to hold: pixels are read when asked for."""

    def __init__(self, record: CaseRecord, store: Store, catalog: Catalog) -> None:
        """Join record, the case's own store and the catalog; use ``archive[case_id]`` instead."""
        self.record = record
        self._store = store
        self._catalog = catalog
        self._image = LazyArray(store, LEVEL)

    @property
    def id(self) -> str:
        """The case's name in the archive."""
        return self.record.id

    @property
    def spacing_zyx_mm(self) -> tuple[float, float, float]:
        """Distance between voxel centres, in array order."""
        return self.record.geometry.spacing_zyx_mm

    @property
    def image(self) -> zarr.Array[Any]:
        """The pixels ``(c, z, y, x)``, not yet read."""
        return self._image.open()

    def read(self) -> Shaped[np.ndarray, "c z y x"]:
        """Return all pixels ``(c, z, y, x)``."""
        return np.asarray(self.image[...])

    def read_slice(self, z: int) -> Shaped[np.ndarray, "c y x"]:
        """Return one slice ``(c, y, x)``; negative ``z`` count from the last.

        Raises:
            IndexError: if there is no such slice.
        """
        start = range(self.record.shape_czyx[1])[z]
        return np.asarray(self.image[:, start : start + 1])[:, 0]  # a slice, not an integer: see storage.store.fast_codecs

    def read_block(self, z0: int, z1: int) -> Shaped[np.ndarray, "c z y x"]:
        """Return the slices ``z0 <= z < z1`` as ``(c, z, y, x)``."""
        return np.asarray(self.image[:, z0:z1])

    def label_sets(self) -> list[str]:
        """Return the names of all finished label sets of this case, sorted."""
        return self._catalog.label_sets(self.id)

    def labels(self, name: str) -> Labels:
        """Return one label set.

        Raises:
            LabelSetNotFoundError: if it is not there or not finished; the message lists those that are.
        """
        known = self.label_sets()
        if name not in known:
            message = f"case {self.id} has no label set {name!r}. It has: {', '.join(known) or 'none'}."
            raise LabelSetNotFoundError(message)
        return Labels(below(self._store, LABELS, folder_of(name)))

    def write_labels(
        self,
        history: LabelHistory,
        ids_zyx: Shaped[np.ndarray, "z y x"],
        *,
        probability_kzyx: Shaped[np.ndarray, "k z y x"] | None = None,
        uncertainty_zyx: Shaped[np.ndarray, "z y x"] | None = None,
        maps: Mapping[str, np.ndarray] | None = None,
        scores: Mapping[str, float] | None = None,
    ) -> None:
        """Write or replace the label set ``history.label_set``. A write that is killed is never visible as a finished one.

        Args:
            history: Where the labels come from; it names the set and the classes.
            ids_zyx: Class ids, uint8 or uint16: 0 background, 255 ignore.
            probability_kzyx: uint8, 255 = certain, ``k`` in the order of ``history.classes``.
            uncertainty_zyx: uint8, 255 = an entropy of ln 2.
            maps: More arrays ``(z, y, x)``, or ``(k, z, y, x)`` by class, uint8, to keep beside the class ids, by name (``Labels.map``).
            scores: Numbers about this label set; kept here and in the catalog.

        Raises:
            InvalidCaseError: if the arrays do not fit the case or the classes.
            ArchiveError: if the archive was opened for reading only.
        """
        check_writable(self._store, f"case {self.id}")
        beside = {PROBABILITY: probability_kzyx, UNCERTAINTY: uncertainty_zyx}
        arrays = {name: array for name, array in beside.items() if array is not None} | dict(maps or {})
        check_map_names(history, arrays)
        arrays = {LEVEL: ids_zyx} | arrays
        check_labels(self.record, history, arrays)
        folder = folder_of(history.label_set)
        self._catalog.retract_label_set(self.id, history.label_set)
        remove_group(below(self._store, LABELS), folder)
        write_label_arrays(below(self._store, LABELS, folder), self.record, history, arrays, scores or {})
        self._list_labels(frozenset({history.label_set}))
        self._catalog.add_label_set(self.id, history, scores or {})
        self._list_labels()

    def delete_labels(self, name: str) -> None:
        """Remove one label set with its scores; nothing happens when there is none."""
        check_writable(self._store, f"case {self.id}")
        self._catalog.retract_label_set(self.id, name)
        self._list_labels()
        remove_group(below(self._store, LABELS), folder_of(name))

    def _list_labels(self, unfinished: frozenset[str] = frozenset()) -> None:
        """Write the NGFF list of label groups: what the catalog knows, and ``unfinished``.

        Two writers of one case may overwrite each other's list; so each of them looks again until list and catalog agree.
        """
        store = below(self._store, LABELS)
        sweep_unfinished(store)
        while (group := group_at(store)).attrs.asdict() != (document := self._listing(unfinished)):
            # The other writer may sweep our temporary file away, and then we write it again.
            with suppress(FileNotFoundError):
                group.attrs.put(document)

    def _listing(self, unfinished: frozenset[str]) -> dict[str, Any]:
        folders = sorted(folder_of(name) for name in unfinished.union(self.label_sets()))
        return listing_attributes(folders).attributes()
