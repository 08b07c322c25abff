"""Attention of packed new rows over a paged cache."""
