"""A ranking as text for a terminal, as a web page, and in the form of HTTP responses."""

from retrv_r1.report.html import render_html, write_html
from retrv_r1.report.response import to_response, to_stats
from retrv_r1.report.terminal import print_ranking, print_stats

__all__ = ["print_ranking", "print_stats", "render_html", "to_response", "to_stats", "write_html"]
