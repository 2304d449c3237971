"""What sections are made of: tables, and groups of lines that each have a name, a figure and a number.

Strings are text, which the templates escape; HTML is `markupsafe.Markup`. ``templates/elements.html`` draws them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup


@dataclass(frozen=True, kw_only=True)
class Section:
    """A section of the page.

    Attributes:
        anchor: Name that links refer to.
        link: What it is called in the table of contents.
        title: Its heading.
        template: File of ``templates/`` that draws `view`.
        view: What the template shows; None where there is nothing to show.
        absent: Where there is nothing to show, why.
    """

    anchor: str
    link: str
    title: str
    template: str = ""
    view: object = None
    absent: str = ""


@dataclass(frozen=True, kw_only=True)
class Table:
    """A table; the first cell of a row is its heading.

    Attributes:
        caption: What it shows.
        header: Heading of each column.
        rows: Cells.
        wide_first: Whether the first column holds sentences.
    """

    caption: str
    header: Sequence[str]
    rows: Sequence[Sequence[str]]
    wide_first: bool = False

    @property
    def worded(self) -> tuple[bool, ...]:
        """Whether each column holds words, which are aligned at the left, or numbers, which are at the right."""
        if not self.rows:
            return (False,) * len(self.header)
        return tuple(all(cell[:1].isalpha() for cell in column) for column in zip(*self.rows, strict=True))


@dataclass(frozen=True, kw_only=True)
class Line:
    """A figure of one line.

    Attributes:
        name: What it shows.
        track: The figure, from `daptq.report.tracks`.
        number: Its value.
    """

    name: str
    track: Markup
    number: str


@dataclass(frozen=True, kw_only=True)
class Group:
    """Lines that belong together under a heading; without lines it is not drawn."""

    title: str
    aside: str = ""
    lines: tuple[Line, ...]


def code(text: str) -> Markup:
    """A cell whose text is a name from the code."""
    return Markup("<code>{}</code>").format(text)


def small(text: str) -> Markup:
    """Text in small print, for a part of a cell."""
    return Markup("<small>{}</small>").format(text)


def lines_of(*lines: str) -> Markup:
    """A cell of several lines."""
    return Markup("<br>").join(lines)
