"""Tables of a page as data: columns that sort, cells that know what they sort by. The template draws them."""

from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup

DASH = "–"


@dataclass(frozen=True)
class Column:
    """``number``: right-aligned, sorted as numbers, largest first. ``note`` explains the heading."""

    name: str
    number: bool = False
    note: str = ""
    sortable: bool = True


@dataclass(frozen=True)
class Cell:
    """``sort`` is what the column sorts by: None where there is nothing, which comes last either way."""

    text: str
    sort: str | float | None = None
    small: str = ""
    css: str = ""
    swatch: str = ""
    drawn: Markup | None = None


@dataclass(frozen=True)
class RowOfCells:
    """The first cell of ``cells`` at place ``heading`` names the row."""

    cells: Sequence[Cell]
    css: str = ""


@dataclass(frozen=True)
class Grid:
    """A table with its caption; ``key`` is unique on the page. ``filterable`` tables have a search field."""

    key: str
    caption: str
    columns: Sequence[Column]
    rows: Sequence[RowOfCells]
    heading: int = 0
    about: str = ""
    filterable: bool = True
    note: str = ""


def text(value: str, small: str = "", css: str = "", swatch: str = "") -> Cell:
    """A cell that sorts by its text."""
    return Cell(value, value.lower() if value and value != DASH else None, small, css, swatch)


def number(value: str, sort: float | None, small: str = "") -> Cell:
    """A cell that sorts by a number; a dash without one."""
    return Cell(value if sort is not None else DASH, sort, small if sort is not None else "")
