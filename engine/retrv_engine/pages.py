"""The free pages of the key-value cache."""

from __future__ import annotations

from collections.abc import Iterable


class PagePool:
    """Hands out page numbers. A page in use belongs to one job or to one node of the radix tree.

    Args:
        count: number of pages.
        size: number of rows of a page.
    """

    def __init__(self, count: int, size: int) -> None:
        if count < 1 or size < 1:
            raise ValueError(f"a cache needs pages and rows, not {count} pages of {size} rows")
        self.count, self.size = count, size
        # The pages freed last are taken first, so that memory never used stays untouched.
        self._free = list(range(count - 1, -1, -1))

    def __len__(self) -> int:
        """Number of free pages."""
        return len(self._free)

    def take(self) -> int:
        """Takes a free page; there must be one."""
        return self._free.pop()

    def give(self, pages: Iterable[int]) -> None:
        """Returns pages to the pool."""
        self._free.extend(pages)

    def check(self, used: Iterable[int]) -> None:
        """Raises AssertionError unless every page is either free or in ``used``, once."""
        everything = sorted([*self._free, *used])
        assert everything == list(range(self.count)), "a page is lost or has two owners"


def pages_of(rows: int, size: int) -> int:
    """Number of pages of ``size`` rows that ``rows`` rows need."""
    return -(-rows // size)
