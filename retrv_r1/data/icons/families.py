"""Hands: which sets one hand drew, and which hands training never sees."""

from __future__ import annotations

from collections.abc import Mapping

from retrv_r1.data.icons.corpus import Split

_SETS: Mapping[str, str] = {
    "boxicons": "boxicons bx bxs",
    "carbon": "carbon",
    "clarity": "clarity",
    "emojione": "emojione emojione-v1 emojione-monotone",
    "fluent": "fluent fluent-color",
    "fluent-emoji": "fluent-emoji fluent-emoji-flat fluent-emoji-high-contrast",
    "font-awesome": "fa fa-regular fa-solid fa6-regular fa6-solid fa7-regular fa7-solid",
    "glyphs": "glyphs glyphs-poly",
    "heroicons": "heroicons heroicons-outline heroicons-solid sidekickicons",
    "icon-park": "icon-park icon-park-outline icon-park-solid icon-park-twotone",
    "icons8": "icons8 wpf",
    "ionicons": "ion famicons",
    "lucide": "lucide lucide-lab feather vadivam",  # all of vadivam's names are lucide's
    "map-pins": "maki temaki pinhead osmic",
    "material": "ic material-symbols material-symbols-light mdi mdi-light zmdi",
    "mono": "mono-icons mi",
    "noto": "noto noto-v1",
    "pepicons": "pepicons pepicons-pencil pepicons-pop pepicons-print",
    "streamline": "streamline streamline-color",
    "streamline-cyber": "streamline-cyber streamline-cyber-color",
    "streamline-flex": "streamline-flex streamline-flex-color",
    "streamline-freehand": "streamline-freehand streamline-freehand-color",
    "streamline-plump": "streamline-plump streamline-plump-color",
    "streamline-sharp": "streamline-sharp streamline-sharp-color",
    "streamline-ultimate": "streamline-ultimate streamline-ultimate-color",
    "unicons": "uil uim uis uit",
}
_FAMILY = {prefix: family for family, sets in _SETS.items() for prefix in sets.split()}
HELD_OUT: Mapping[str, Split] = {
    "emojione": "test",  # the test family of the pictographs
    "lucide": "test",
    "carbon": "test",
    "flat-color-icons": "test",
    "fxemoji": "val",  # the validation style of the pictographs
    "iconoir": "val",
    "streamline-kameleon-color": "val",
}
"""Families that training never sees. No pictograph style of training is among them."""

SHARED = frozenset({"fluent-emoji", "noto", "openmoji", "streamline-emojis", "twemoji"})
"""Families of the training styles of the pictographs."""


def family_of(prefix: str) -> str:
    """Family of a set: that of the table, else the set is a family of its own."""
    return _FAMILY.get(prefix, prefix)


def hand_split(family: str) -> Split:
    """Split of a family."""
    return HELD_OUT.get(family, "train")
