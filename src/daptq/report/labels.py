"""What a policy is called on the page, and which mark it has."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from markupsafe import Markup

from daptq.report.marks import key


@dataclass(frozen=True, kw_only=True)
class PolicyLabels:
    """How the policies of a result are shown.

    Attributes:
        labels: What a policy is called on the page, by name.
        marks: Number of a policy's mark, by name; 0 is the first one.
    """

    labels: Mapping[str, str]
    marks: Mapping[str, int]

    @classmethod
    def of(cls, names: Sequence[str]) -> PolicyLabels:
        """Shows a folder by its last part where no other policy has the same; everything else by its name.

        Args:
            names: Names of the policies in the result's order.
        """
        last = {name: name.rstrip("/").rpartition("/")[2] or name for name in names}
        counts = [*last.values()]
        labels = {name: last[name] if counts.count(last[name]) == 1 else name for name in names}
        return cls(labels=labels, marks={name: index for index, name in enumerate(names)})

    def label(self, name: str) -> str:
        """The label of a policy; a name that is not in the result is its own label."""
        return self.labels.get(name, name)

    def marked(self, name: str) -> Markup:
        """The label of a policy after its mark; a name that is not in the result has no mark."""
        if name not in self.marks:
            return Markup("{}").format(name)
        return Markup("{} {}").format(key(self.marks[name]), self.label(name))
