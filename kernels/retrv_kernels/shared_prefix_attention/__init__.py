"""Decode attention of sequences with shared prefixes; each prefix is read once."""
