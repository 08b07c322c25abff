"""Relation tokens: rows that attend to a query, pooled without being formed."""
