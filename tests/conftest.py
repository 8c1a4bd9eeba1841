"""Fixtures for every room: the real data, a private Prefect, and few threads."""

import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

# Before any import of torch or numpy's BLAS: tests share the machine.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("MKL_NUM_THREADS", "1")
os.environ.setdefault("MPLBACKEND", "Agg")
# The suite never touches the Prefect of the person who runs it.
os.environ["PREFECT_HOME"] = tempfile.mkdtemp(prefix="samdistill-prefect-")

_HOW = "Set SAMDISTILL_TEST_DATA to the folder with hippocampus/, cardiac/, ... (see CONTRIBUTING.md)."


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder of real images; skips, or fails where SAMDISTILL_REQUIRE_DATA=1 says that it must be there."""
    named = os.environ.get("SAMDISTILL_TEST_DATA", "")
    if named and Path(named).is_dir():
        return Path(named)
    found = f"SAMDISTILL_TEST_DATA is {named!r}, which is no folder." if named else "SAMDISTILL_TEST_DATA is not set."
    if os.environ.get("SAMDISTILL_REQUIRE_DATA") == "1":
        pytest.fail(f"real data required: {found} {_HOW}")
    pytest.skip(f"needs real data: {found} {_HOW}")


@pytest.fixture(scope="session")
def prefect_backend() -> Iterator[None]:
    """A throw-away Prefect server for tests that run flows; costs seconds, so only those ask for it."""
    from prefect.testing.utilities import prefect_test_harness

    import flows  # sets the quiet environment before prefect reads it

    assert flows.__name__ == "flows"
    with prefect_test_harness(server_startup_timeout=180):
        yield


@pytest.fixture(scope="session", autouse=True)
def one_seed() -> None:
    """Make hash-dependent and random choices repeat; torch is not imported for it."""
    import random

    random.seed(0)
