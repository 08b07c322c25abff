"""Relation tokens: pools the rows with which a candidate attends to a query."""
