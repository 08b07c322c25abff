"""Rotates new queries and keys to their positions and writes new rows into the paged cache."""
