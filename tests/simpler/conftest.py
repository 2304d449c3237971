"""Where ManiSkill finds the assets of the tests: `DAPTQ_SIMPLER_ASSETS`, if it is set, else where it always looks."""

from __future__ import annotations

import os

if folder := os.environ.get("DAPTQ_SIMPLER_ASSETS"):
    os.environ["MS_ASSET_DIR"] = folder  # read when ManiSkill is imported
