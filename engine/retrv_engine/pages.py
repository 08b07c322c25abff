"""Which pages of the key-value cache are free."""

from __future__ import annotations

from collections.abc import Iterable


class PagePool:
    """Hands out page numbers. A page in use belongs to one sequence or to one node of the tree.

    Args:
        count: pages in all.
        size: rows of a page.
    """

    def __init__(self, count: int, size: int) -> None:
        if count < 1 or size < 1:
            raise ValueError(f"{count} pages of {size} rows are no cache")
        self.count, self.size = count, size
        # Pages that were used last are used next: memory that was never touched stays untouched.
        self._free = list(range(count - 1, -1, -1))

    def __len__(self) -> int:
        """Free pages."""
        return len(self._free)

    def take(self) -> int:
        """A free page; there must be one."""
        return self._free.pop()

    def give(self, pages: Iterable[int]) -> None:
        """Takes pages back."""
        self._free.extend(pages)

    def check(self, used: Iterable[int]) -> None:
        """Raises AssertionError unless every page is free or in ``used``, and just once."""
        everything = sorted([*self._free, *used])
        assert everything == list(range(self.count)), "a page is lost or has two owners"


def pages_of(rows: int, size: int) -> int:
    """Pages of ``size`` rows that so many rows take."""
    return -(-rows // size)
