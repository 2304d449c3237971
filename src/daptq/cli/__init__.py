"""The command line: one file per command, the same verbs and names as the Python API.

Exit codes: 0 done, 1 a check failed, 2 bad usage or input. Importing this package imports neither torch nor mujoco; a
command imports what it needs when it runs.
"""

from __future__ import annotations

from daptq.cli._main import main

__all__ = ["main"]
