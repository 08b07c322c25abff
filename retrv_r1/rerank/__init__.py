"""Ranking: items to features, features to engine requests, outputs to a ranking."""
