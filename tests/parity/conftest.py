"""The other systems are asked on this machine alone: nothing is fetched."""

from __future__ import annotations

import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")
