"""Pages that show what a job found: self-contained HTML, made from plain Python values."""

from diva_ray.report.sheet import (
    Bars,
    Columns,
    Facts,
    Gallery,
    Inform,
    Lines,
    Pulls,
    Sheet,
    Table,
    Terms,
    Tile,
    render_sheet,
)

__all__ = [
    "Bars",
    "Columns",
    "Facts",
    "Gallery",
    "Inform",
    "Lines",
    "Pulls",
    "Sheet",
    "Table",
    "Terms",
    "Tile",
    "render_sheet",
]
