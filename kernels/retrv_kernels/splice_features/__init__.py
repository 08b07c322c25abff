"""Inspected candidates: gathers their rows into one packed prefill batch."""
