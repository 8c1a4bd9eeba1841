"""Keep the claims of this process alive while it works, so that other hosts see that somebody is at them.

A claim is believed on other hosts for ``LEASE_S`` seconds. How long a unit takes depends on teacher and hardware, and may be longer,
so the beat has a thread of its own and does not wait for the work.
"""

import logging
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from storage.ledger import LEASE_S, Ledger

BEAT_S = LEASE_S / 4
"""Three beats may be missed before others may take a claim."""

LOG = logging.getLogger("samdistill.heartbeat")


@contextmanager
def beating(ledger: Ledger, *, on_loss: Callable[[Exception], None] | None = None) -> Iterator[None]:
    """Renew every claim of this process from a background thread until the block ends.

    A beat that fails is logged and tried again at the next. Once none has come through for a whole lease, workers on other hosts
    may take the claims.

    Args:
        ledger: Whose claims.
        on_loss: Called in the thread with the last error, at most once, when a whole lease has passed without a beat; the
            thread ends then. Without it the thread goes on trying: a claim that was taken shows when the unit is finished.
    """
    ended = threading.Event()
    thread = threading.Thread(target=_beat_until, args=(ledger, ended, on_loss), name="samdistill-heartbeat", daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


def _beat_until(ledger: Ledger, ended: threading.Event, on_loss: Callable[[Exception], None] | None) -> None:
    renewed = time.monotonic()
    while not ended.wait(BEAT_S):
        try:
            ledger.heartbeat()
        except Exception as error:  # noqa: BLE001 - whatever it is, the claims are not renewed, and the worker has to know
            silent_s = time.monotonic() - renewed
            LOG.warning("the claims of this process could not be renewed for %.0f s: %s: %s", silent_s, type(error).__name__, error)
            if on_loss is not None and silent_s >= LEASE_S:
                on_loss(error)
                return
        else:
            renewed = time.monotonic()
