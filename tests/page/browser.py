"""Chromium, started by Playwright."""

from __future__ import annotations

import os
import shutil
from typing import Any

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
"""Path of Chromium; None if it is missing."""


def launch(driver: Any) -> Any:
    """Start Chromium."""
    sandbox = ["--no-sandbox"] if os.geteuid() == 0 else []
    return driver.chromium.launch(executable_path=CHROMIUM, args=sandbox, timeout=120_000)
