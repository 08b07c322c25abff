"""Data: M-BEIR directories and the pictograph set that is built from packages."""
