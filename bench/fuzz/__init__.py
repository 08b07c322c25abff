"""Sends a rerank server what no client should send, and looks whether it keeps its promises.

Run with ``python -m bench.fuzz``; see ``__main__.py``.
"""
