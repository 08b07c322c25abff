"""Groups of emoji by code-point range, for codes whose group no source states."""

from __future__ import annotations

# (first, last, group), coarse, searched in this order.
_RANGES: tuple[tuple[int, int, str], ...] = (
    (0x1F600, 0x1F644, "smileys"),
    (0x1F910, 0x1F917, "smileys"),
    (0x1F920, 0x1F925, "smileys"),
    (0x1F927, 0x1F92F, "smileys"),
    (0x1F970, 0x1F97A, "smileys"),
    (0x1F47A, 0x1F480, "smileys"),
    (0x1F493, 0x1F49F, "smileys"),
    (0x1F645, 0x1F64F, "people"),
    (0x1F440, 0x1F450, "people"),
    (0x1F464, 0x1F487, "people"),
    (0x1F48F, 0x1F491, "people"),
    (0x1F918, 0x1F93E, "people"),
    (0x1F9B0, 0x1F9BB, "people"),
    (0x1F9CD, 0x1F9DF, "people"),
    (0x1FAC3, 0x1FAC5, "people"),
    (0x1FAF0, 0x1FAF8, "people"),
    (0x1F330, 0x1F344, "animals"),
    (0x1F400, 0x1F43F, "animals"),
    (0x1F980, 0x1F9AE, "animals"),
    (0x1FAB0, 0x1FABF, "animals"),
    (0x1FACE, 0x1FACF, "animals"),
    (0x1F345, 0x1F37F, "food"),
    (0x1F950, 0x1F96F, "food"),
    (0x1F9C0, 0x1F9CB, "food"),
    (0x1FAD0, 0x1FADF, "food"),
    (0x1F380, 0x1F3C6, "activities"),
    (0x1F3C7, 0x1F3CF, "activities"),
    (0x1F93F, 0x1F94F, "activities"),
    (0x1FA80, 0x1FA89, "activities"),
    (0x1F300, 0x1F32F, "travel"),
    (0x1F3D4, 0x1F3F0, "travel"),
    (0x1F550, 0x1F567, "travel"),
    (0x1F680, 0x1F6FF, "travel"),
    (0x1F451, 0x1F463, "objects"),
    (0x1F488, 0x1F54A, "objects"),
    (0x1F570, 0x1F5FA, "objects"),
    (0x1F97B, 0x1F97F, "objects"),
    (0x1F9AF, 0x1F9FF, "objects"),
    (0x1FA70, 0x1FAAF, "objects"),
    (0x1F1E6, 0x1F1FF, "flags"),
)


def group_of(code: str) -> str:
    """Group of a code by its first code point; `symbols` if no range holds it."""
    point = int(code.split("-")[0], 16)
    return next((g for lo, hi, g in _RANGES if lo <= point <= hi), "symbols")


# Our groups by category name in the metadata of the icon sets.
GROUP_OF_CATEGORY: dict[str, str] = {
    "Smileys & Emotion": "smileys",
    "People & Body": "people",
    "Animals & Nature": "animals",
    "Food & Drink": "food",
    "Activities": "activities",
    "Travel & Places": "travel",
    "Objects": "objects",
    "Symbols": "symbols",
    "Flags": "flags",
}
