"""Inspected candidates: rows gathered into one packed prefill batch."""
