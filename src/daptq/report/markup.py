"""Pieces of HTML that every section is made of: sections, tables, rows with a track, and numbers as text.

Whatever is passed as text is escaped here; what is passed as HTML is said to be. The module knows nothing of results.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

from daptq.report.figures import key, scale

Json = Mapping[str, Any]

MINUS = "\N{MINUS SIGN}"
NOTHING = "\N{EN DASH}"
_SMALL = 0.01


@dataclass(frozen=True, kw_only=True)
class Policies:
    """How the policies of a result are shown.

    Attributes:
        labels: What a policy is called on the page, by name.
        marks: Number of a policy's mark, by name; 0 is the first one.
    """

    labels: Mapping[str, str]
    marks: Mapping[str, int]

    @classmethod
    def of(cls, result: Json) -> Policies:
        """Shows a folder by its last part, where that tells it apart; everything else by its name."""
        names = [policy["name"] for policy in result["policies"]]
        last = {name: name.rstrip("/").rpartition("/")[2] or name for name in names}
        counts = [*last.values()]
        labels = {name: last[name] if counts.count(last[name]) == 1 else name for name in names}
        return cls(labels=labels, marks={name: index for index, name in enumerate(names)})

    def label(self, name: str) -> str:
        """The label of a policy, HTML; a name that is not in the result stands for itself."""
        return escape(self.labels.get(name, name))

    def marked(self, name: str) -> str:
        """The label of a policy after its mark, HTML."""
        return f"{key(self.marks[name])} {self.label(name)}"


def section(name: str, title: str, body: str) -> str:
    """A section of the page.

    Args:
        name: Its anchor.
        title: Its heading, text.
        body: Its content, HTML.
    """
    heading = f'<h2 id="{name}-title">{escape(title)}</h2>'
    return f'<section id="{name}" aria-labelledby="{name}-title">{heading}{body}</section>'


def note(text: str) -> str:
    """A remark in small print."""
    return f'<p class="soft">{escape(text)}</p>'


def absent(text: str) -> str:
    """Says what is not on the page, and why."""
    return f'<p class="absent">{escape(text)}</p>'


def table(caption: str, header: Sequence[str], rows: Iterable[Sequence[str]], *, wide_first: bool = False) -> str:
    """A table that scrolls by itself where the page is narrow; the first cell of a row is its heading.

    Args:
        caption: What the table shows, text.
        header: Heading of each column, text.
        rows: Cells, HTML.
        wide_first: Whether the first column holds sentences.
    """
    listed = list(rows)
    # Words are read from the left, numbers compared at the right.
    sides = [
        ' class="words"' if all(cell[:1].isalpha() for cell in column) else "" for column in zip(*listed, strict=True)
    ]
    sides = sides or [""] * len(header)
    head = "".join(f'<th scope="col"{side}>{escape(name)}</th>' for name, side in zip(header, sides, strict=True))
    lines = (
        f'<th scope="row">{cells[0]}</th>'
        + "".join(f"<td{side}>{cell}</td>" for cell, side in zip(cells[1:], sides[1:], strict=True))
        for cells in listed
    )
    body = "".join(f"<tr>{line}</tr>" for line in lines)
    style = ' class="wide-first"' if wide_first else ""
    return (
        f'<div class="scroll" role="region" tabindex="0" aria-label="{escape(caption)}"><table{style}>'
        f"<caption><span>{escape(caption)}</span></caption><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>"
    )


def row(name: str, track: str, text: str) -> str:
    """A line with a name (HTML), a figure (HTML) and a number (text)."""
    return f'<div class="row"><span class="name">{name}</span>{track}<span class="number">{escape(text)}</span></div>'


def scale_row(left: str, middle: str, right: str) -> str:
    """What the ends and the middle of the tracks above mean, text."""
    return f'<div class="row scale"><span></span>{scale(left, middle, right)}<span></span></div>'


def legend(policies: Policies, names: Iterable[str]) -> str:
    """Which mark stands for which policy."""
    items = "".join(f"<li>{policies.marked(name)}</li>" for name in names)
    return f'<ul class="legend">{items}</ul>'


def task_name(task: str) -> str:
    """The name of a task for people."""
    return task.replace("_", " ").capitalize()


def count_of(count: int, singular: str) -> str:
    """A number with its noun."""
    return f"{count} {singular}" + ("" if count == 1 else "s")


def estimate(value: Json) -> str:
    """A value with its interval, three digits each."""
    return f"{short(value['value'])} [{short(value['low'])}, {short(value['high'])}]"


def short(value: float) -> str:
    """Three digits of a number at least 0; what is small is said to be, so that 0 means exactly 0."""
    return f"{value:.3g}" if value == 0 or value >= _SMALL else f"<{_SMALL:g}"


def points(value: float) -> str:
    """A signed number of percentage points; rounding leaves no minus zero."""
    rounded = round(value, 1) + 0.0
    sign = "+" if rounded > 0 else MINUS if rounded < 0 else ""
    return f"{sign}{abs(rounded):.1f}"


def points_interval(value: Json) -> str:
    """A difference in points with its interval."""
    return f"{points(value['difference'])} [{points(value['low'])}, {points(value['high'])}]"
