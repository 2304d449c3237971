"""Writes an evaluation as one self-contained HTML page: verdict first, figures inline, nothing loaded from elsewhere.

The page is made from the result of an evaluation, that of a benchmark where there is one, and videos that were recorded
before. It runs no script, and a browser that reads it is told to fetch nothing. Each section has a module that prepares
what is shown, as text and numbers, and a template that shows it; the templates escape every text.
"""

from __future__ import annotations

from daptq.report.page import write_report

__all__ = ["write_report"]
