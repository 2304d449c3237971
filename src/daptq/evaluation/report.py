"""Writes an evaluation as one self-contained HTML page: verdict first, figures inline, nothing loaded from elsewhere.

The page is made from the result's JSON alone, so it can be made again from a stored file. It judges nothing beyond what
the intervals in the result say.
"""

from __future__ import annotations

from collections.abc import Mapping
from html import escape
from importlib import resources
from pathlib import Path
from string import Template
from typing import Any

from daptq.artifacts import write_bytes
from daptq.errors import ForeignArtifactError, SchemaVersionError
from daptq.evaluation._sections import all_sections
from daptq.evaluation._svg import series_style
from daptq.evaluation.paired import SCHEMA_VERSION


def write_report(result: Mapping[str, Any], path: Path | str) -> Path:
    """Writes the page.

    Args:
        result: What `evaluate` returned, with what `measure_latency` returned under `latency` where it was measured.
        path: HTML file to write; an existing one is replaced.

    Returns:
        The path.

    Raises:
        ForeignArtifactError: `result` is no evaluation.
        SchemaVersionError: `result` was written by a version with another format.
        OutputWriteError: The disk refused the write.
    """
    if not isinstance(result, Mapping) or "schema_version" not in result or "policies" not in result:
        raise ForeignArtifactError("result must be an evaluation, got something else. Pass what evaluate returned.")
    if result["schema_version"] != SCHEMA_VERSION:
        found = result["schema_version"]
        message = f"schema_version of the evaluation must be {SCHEMA_VERSION}, got {found!r}. Evaluate again."
        raise SchemaVersionError(message)
    title = f"Closed-loop evaluation on {result['environment']}"
    template = resources.files("daptq.evaluation").joinpath("report.html").read_text(encoding="utf-8")
    page = Template(template).substitute(title=escape(title), series=series_style(), body=all_sections(result, title))
    write_bytes(Path(path), page.encode())
    return Path(path)
