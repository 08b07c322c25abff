"""Says how to install what an optional part of the distribution needs."""

from __future__ import annotations

from pathlib import Path

_ROOT = Path(__file__).parents[2]


def install_command(extra: str) -> str:
    """The command that installs an extra; in a checkout, the one for the checkout's folder."""
    source = "-e '." if (_ROOT / "pyproject.toml").is_file() else "'retrv-r1"
    return f"pip install {source}[{extra}]'"
