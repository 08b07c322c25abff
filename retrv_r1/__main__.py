"""``python -m retrv_r1``: the command line where nothing is installed."""

from retrv_r1.command.cli import app

app(prog_name="retrv-r1")
