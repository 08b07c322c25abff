"""Whether scores are the same everywhere: golden scores of a checkpoint, and what to hold to them.

``lists`` makes the lists, ``golden`` the scores that a checkpoint ships, ``comparing`` tells
differences, ``engines`` and ``server`` rank the lists on each engine and through each dialect.
"""
