"""Rotary positions of new queries and keys, and the new rows' way into the paged cache."""
