"""Runs the command line without an install: ``python -m retrv_r1``."""

from retrv_r1.command.cli import app

app(prog_name="retrv-r1")
