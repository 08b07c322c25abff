"""Content tokens: each item's rows pooled under fixed queries, in one read."""
