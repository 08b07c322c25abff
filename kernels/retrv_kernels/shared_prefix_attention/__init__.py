"""Decode attention of sequences that share prefixes, each read once."""
