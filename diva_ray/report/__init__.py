"""Pages that show what a job found: self-contained HTML, made from plain Python values."""

from diva_ray.report.page import ScoreReport, render_score_page
from diva_ray.report.sheet import Bars, Columns, Gallery, Inform, Lines, Pulls, Sheet, Table, Tile, render_sheet

__all__ = [
    "Bars",
    "Columns",
    "Gallery",
    "Inform",
    "Lines",
    "Pulls",
    "ScoreReport",
    "Sheet",
    "Table",
    "Tile",
    "render_score_page",
    "render_sheet",
]
