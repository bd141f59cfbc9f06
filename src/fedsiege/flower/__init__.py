"""Flower: the same siege on real clients, and a tap into somebody else's federation.

Flower and Ray report home and look for updates unless they are told not to; here they are told. Import this room
before Flower: the switches are read when Flower is imported.
"""

import os

SILENT = {
    "FLWR_TELEMETRY_ENABLED": "0",
    "FLWR_DISABLE_UPDATE_CHECK": "1",
    "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
    "RAY_USAGE_STATS_ENABLED": "0",
    "HF_HUB_OFFLINE": "1",
}
"""Environment variables under which neither Flower nor Ray nor a data set's reader calls anybody."""

for _name, _value in SILENT.items():
    if not _name.startswith("HF_"):
        os.environ.setdefault(_name, _value)
