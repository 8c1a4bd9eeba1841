"""The only room that knows Prefect, the command line and the web.

Importing it sets Prefect's environment: private, quiet, and answering to nobody outside this machine. Prefect reads these
variables once, on import, so they have to be in place before. Whatever the user has set already wins.
"""

import os
from pathlib import Path

_CACHE = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")

PREFECT_ENVIRONMENT = {
    "PREFECT_HOME": str(_CACHE / "samdistill" / "prefect"),
    "PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS": "120",  # the first start on a busy machine was seen to take 30 s
    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
    "PREFECT_CLOUD_ENABLE_ORCHESTRATION_TELEMETRY": "false",
    "PREFECT_TELEMETRY_ENABLE_RESOURCE_METRICS": "false",
    "PREFECT_SERVER_UI_SHOW_PROMOTIONAL_CONTENT": "false",
    "DO_NOT_TRACK": "1",
    # The console belongs to our progress bars; the log stays complete in Prefect's database. --debug lifts this.
    "PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL": "CRITICAL",
    "PREFECT_SERVER_LOGGING_LEVEL": "ERROR",
}

for _name, _value in PREFECT_ENVIRONMENT.items():
    os.environ.setdefault(_name, _value)

# Threads that wait for each other by spinning made two runs on one machine several times slower (labelling
# beside a training: 8 cases in 5 minutes). OpenMP reads this once, when torch loads it.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
