"""Where the numbers come from: versions, machine, seed, and hashes of the weights."""

from __future__ import annotations

from collections.abc import Mapping
from html import escape
from typing import Any

from daptq.report.markup import Json, Policies, section, table


def provenance_section(result: Json, policies: Policies, benchmark: Json | None) -> str:
    """What was recorded with the result and with the benchmark."""
    parts = [_listed("The evaluation", {**result["provenance"], **_weights(result)})]
    if benchmark is not None:
        parts.append(_listed("The benchmark", benchmark["provenance"]))
    names = [(escape(policies.labels[name]), f"<code>{escape(name)}</code>") for name in policies.labels]
    if any(policies.labels[name] != name for name in policies.labels):
        parts.append(table("Full names of the policies", ("policy", "name"), names))
    return section(
        "provenance", "Provenance", f"<details><summary>Versions, machine, weights</summary>{''.join(parts)}</details>"
    )


def _weights(result: Json) -> dict[str, str]:
    return {f"weights of {one['name']}": f"sha256 {one['weights']['sha256']}" for one in result["policies"]}


def _listed(caption: str, entries: Json) -> str:
    rows = [(escape(name), escape(_text(value))) for name, value in entries.items() if value is not None]
    return f'<div class="wrapped">{table(caption, ("what", "value"), rows)}</div>'


def _text(value: Any) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{name} {inner}" for name, inner in value.items() if inner is not None)
    return str(value)
