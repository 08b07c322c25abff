"""Lists longer than one prompt: a window that slides from the end of a list to its start."""

from __future__ import annotations

from retrv_r1.rerank.ordering import merge_windows


class Windows:
    """A list on its way through a window that slides from its end to its start.

    Lists longer than a window are ranked window by window, each overlapping the one before by half,
    so that the best reach the last window.

    Attributes:
        order: candidate numbers, the order so far.
        start: where the current window begins.
        tail: candidates behind the windows still to come, with scores.
    """

    def __init__(self, count: int, window: int) -> None:
        self.window = window
        self.order = list(range(count))
        self.start = max(0, count - window)
        self.tail: list[tuple[int, float]] = []

    @property
    def sliding(self) -> bool:
        """Whether the current window is not the last one."""
        return self.start > 0

    @property
    def current(self) -> list[int]:
        """Candidate numbers of the current window."""
        return self.order[self.start : self.start + self.window]

    def slide(self, ranked: list[tuple[int, float]]) -> None:
        """Takes a window's ranking and moves half a window towards the start."""
        stop = self.start + self.window
        self.order[self.start : stop] = [candidate for candidate, _ in ranked]
        following = max(0, self.start - self.window // 2)
        left_behind = following + self.window - self.start
        self.tail = merge_windows(ranked[left_behind:], self.tail)
        self.start = following
