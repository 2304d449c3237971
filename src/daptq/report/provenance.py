"""Where the numbers come from: versions, machine, seed, and hashes of the weights."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from daptq.benchmarking.result import BenchmarkResult
from daptq.evaluation.result import EvaluationResult
from daptq.report.elements import Section, Table, code
from daptq.report.labels import PolicyLabels

_TITLE = "Provenance"


@dataclass(frozen=True, kw_only=True)
class ProvenanceView:
    """What was recorded.

    Attributes:
        recorded: With the evaluation, and with the benchmark where there is one.
        names: Full names of the policies; None where all are shown by their names.
    """

    recorded: tuple[Table, ...]
    names: Table | None


def provenance_section(result: EvaluationResult, labels: PolicyLabels, benchmark: BenchmarkResult | None) -> Section:
    """What was recorded with the result and with the benchmark."""
    weights = {f"weights of {one.name}": f"sha256 {one.weights.sha256}" for one in result.policies}
    recorded = [_recorded("The evaluation", {**result.provenance.to_json(), **weights})]
    if benchmark is not None:
        recorded.append(_recorded("The benchmark", benchmark.provenance.to_json()))
    names = None
    if any(label != name for name, label in labels.labels.items()):
        names = Table(
            caption="Full names of the policies",
            header=("policy", "name"),
            rows=[(label, code(name)) for name, label in labels.labels.items()],
        )
    view = ProvenanceView(recorded=tuple(recorded), names=names)
    return Section(anchor="provenance", link=_TITLE, title=_TITLE, template="provenance.html", view=view)


def _recorded(caption: str, entries: Mapping[str, object]) -> Table:
    rows = [(name, _text(value)) for name, value in entries.items() if value not in (None, "")]
    return Table(caption=caption, header=("what", "value"), rows=rows)


def _text(value: object) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{name} {inner}" for name, inner in value.items() if inner is not None)
    return str(value)
