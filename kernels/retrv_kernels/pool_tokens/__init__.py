"""Content tokens: the rows of each item pooled under fixed queries, in one read."""
