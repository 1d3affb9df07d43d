"""Pages that show what a job found: self-contained HTML, made from plain Python values."""

from diva_ray.report.page import ScoreReport, render_score_page

__all__ = ["ScoreReport", "render_score_page"]
