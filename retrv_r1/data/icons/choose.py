"""Which icons enter the corpus: all sets' names joined to concepts, capped for breadth."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from retrv_r1.data.icons.concepts import Words, brands, is_brand, merge_plurals, share
from retrv_r1.data.icons.families import family_of
from retrv_r1.data.icons.names import IconName, read_names
from retrv_r1.data.icons.sets import Drawing, IconSet, icon_set, reason_against

STYLES_PER_DRAWING = 2
DRAWINGS_PER_CONCEPT = 4
_UNSPACED = frozenset(("fxemoji", "whh"))  # sets that write names without gaps
_UNKNOWN = 10  # letters of an unknown word, above which it is taken for several
_THING_SETS = frozenset(("game-icons", "fluent-emoji"))


@dataclass(frozen=True)
class Icon:
    """An icon that may enter the corpus.

    Args:
        set: prefix of its set.
        drawing: its drawing.
        name: what its name says.
        code: concept key.
    """

    set: str
    drawing: Drawing
    name: IconName
    code: str

    @property
    def family(self) -> str:
        """Family of the set."""
        return family_of(self.set)


@dataclass
class Choice:
    """Icons of the corpus, what is known beside them, and what was left out.

    Args:
        icons: icons, sorted by set and name.
        aliases: other names of each concept.
        categories: categories of each concept, most frequent first.
        infos: what the package states of each set, used or not.
        reasons: why a set is not used, by prefix.
        dropped: numbers of icons left out of used sets, by reason and set.
    """

    icons: list[Icon] = field(default_factory=list)
    aliases: dict[str, list[str]] = field(default_factory=dict)
    categories: dict[str, list[str]] = field(default_factory=dict)
    infos: dict[str, Mapping[str, Any]] = field(default_factory=dict)
    reasons: dict[str, str] = field(default_factory=dict)
    dropped: dict[str, dict[str, int]] = field(default_factory=lambda: defaultdict(dict))


def choose(files: Iterable[Mapping[str, Any]], seed: int) -> Choice:
    """The icons of the corpus, from the contents of the package.

    Args:
        files: contents of the file of each set, see `read_sets`.
        seed: seed of the choice among style variants.
    """
    choice = Choice()
    sets: dict[str, IconSet] = {}
    brand_names: dict[str, list[str]] = {}
    for data in files:
        prefix, info = data["prefix"], data["info"]
        choice.infos[prefix] = info
        if reason := reason_against(prefix, info):
            choice.reasons[prefix] = reason
            if info.get("category") == "Logos" or prefix in ("fa-brands", "fa6-brands"):
                brand_names[prefix] = list(data["icons"])
            continue
        sets[prefix] = icon_set(data)
    names = _spaced({prefix: read_names(icons) for prefix, icons in sorted(sets.items())})
    things = {
        word
        for prefix, found in names.items()
        if prefix in _THING_SETS or sets[prefix].info.get("category") == "Emoji"
        for name in found.values()
        for word in name.words
    }
    every = (name.words for found in names.values() for name in found.values())
    known = brands(brand_names, things, every)
    codes = _codes(sets, names)
    for prefix, icons in sorted(sets.items()):
        _choose_in(choice, icons, names[prefix], codes[prefix], known, seed)
    _gather_aliases(choice, sets, codes)
    _gather_categories(choice)
    return choice


def _spaced(names: dict[str, dict[str, IconName]]) -> dict[str, dict[str, IconName]]:
    """Names, with gaps where their set writes none; without those in which no words are found."""
    spaced = (found for prefix, found in names.items() if prefix not in _UNSPACED)
    words = Words(name.words for found in spaced for name in found.values())
    for prefix in _UNSPACED & names.keys():
        for key, name in list(names[prefix].items()):
            plain = (word.rstrip("0123456789") or word for word in name.words)
            split = tuple(part for word in plain for part in words.split(word))
            if any(len(part) > _UNKNOWN and part not in words for part in split):
                del names[prefix][key]
            else:
                names[prefix][key] = replace(name, words=split, shown=split)
    return names


def _codes(
    sets: Mapping[str, IconSet], names: Mapping[str, Mapping[str, IconName]]
) -> dict[str, dict[str, str]]:
    """Concept key of each name of each set."""
    raw = {
        prefix: {key: _key(name, sets[prefix], key) for key, name in found.items()}
        for prefix, found in names.items()
    }
    drawn = {
        prefix: {code for key, code in found.items() if key in sets[prefix].drawings}
        for prefix, found in raw.items()
    }
    merged = merge_plurals(drawn)
    return {p: {k: merged.get(c, c) for k, c in found.items()} for p, found in raw.items()}


def _key(name: IconName, icons: IconSet, key: str) -> str:
    """Words of a concept key; countries that only their category calls flags are flags."""
    words = list(name.words)
    drawing = icons.drawings.get(icons.aliases.get(key, key))
    if words[0] == "flag":
        words = ["flag", *(w for w in words[1:] if w not in ("for", "flag"))]
    elif drawing and drawing.group == "Flags" and "flag" not in " ".join(words):
        words = ["flag", *words]
    return " ".join(words)


def _choose_in(
    choice: Choice,
    icons: IconSet,
    names: Mapping[str, IconName],
    codes: Mapping[str, str],
    known_brands: frozenset[str],
    seed: int,
) -> None:
    """Adds the icons of one set that enter the corpus, and counts the others."""
    prefix = icons.prefix
    rows, brand = [], 0
    for key in sorted(icons.drawings):
        if key not in names:
            continue
        group = icons.drawings[key].group.lower()
        if is_brand(codes[key], known_brands) or "brand" in group or "logo" in group:
            brand += 1
            continue
        rows.append(Icon(prefix, icons.drawings[key], names[key], codes[key]))
    kept = _capped(rows, seed)
    choice.icons += kept
    unread = sum(key not in names for key in icons.drawings)
    for reason, count in (
        ("hidden or moving", icons.dropped),
        ("name says nothing", unread),
        ("brand", brand),
        ("another style or size", len(rows) - len(kept)),
    ):
        if count:
            choice.dropped[reason][prefix] = count


def _capped(icons: list[Icon], seed: int) -> list[Icon]:
    """At most two styles of each drawing, none twice for its size, four drawings of a concept."""

    def place(icon: Icon) -> float:
        return share(seed, "choice", icon.set, icon.drawing.name)

    drawings: dict[tuple[str, ...], list[Icon]] = defaultdict(list)
    for icon in sorted(icons, key=place):
        n = icon.name
        key = (icon.code, n.number, n.skin, n.gender, " ".join(n.shown))
        alike = drawings[key]
        if len(alike) < STYLES_PER_DRAWING and all(n.styles != o.name.styles for o in alike):
            alike.append(icon)
    per_concept: Counter[tuple[str, ...]] = Counter()
    kept = []
    for (code, _, skin, gender, _), alike in drawings.items():
        if per_concept[code, skin, gender] < DRAWINGS_PER_CONCEPT:
            per_concept[code, skin, gender] += 1
            kept += alike
    return sorted(kept, key=lambda icon: icon.drawing.name)


def _gather_aliases(
    choice: Choice, sets: Mapping[str, IconSet], codes: Mapping[str, Mapping[str, str]]
) -> None:
    """Collects other names of the concepts that are in the corpus."""
    drawn = {icon.code for icon in choice.icons}
    found: dict[str, set[str]] = defaultdict(set)
    for prefix, icons in sets.items():
        for alias, name in icons.aliases.items():
            code, other = codes[prefix].get(name), codes[prefix].get(alias)
            if code in drawn and code is not None and other and _says_the_same(code, other):
                found[code].add(other)
    choice.aliases = {code: sorted(found[code]) for code in sorted(found)}


_OPPOSITE = {"left": "right", "right": "left", "up": "down", "down": "up", "top": "bottom"} | {
    "bottom": "top"
}
_ALIAS_WORDS = 4  # longer ones are lists of tags


def _says_the_same(code: str, other: str) -> bool:
    """Whether an alias is a name that people may say: no version, no tags, no other direction."""
    words = other.split()
    turned = " ".join(_OPPOSITE.get(word, word) for word in words)
    return (
        other != code
        and turned != code
        and len(words) <= _ALIAS_WORDS
        and words[0] not in ("bx", "bxs", "interface")
        and not any(c.isdigit() for c in other)
    )


def _gather_categories(choice: Choice) -> None:
    """Collects the categories of the concepts."""
    found: dict[str, Counter[str]] = defaultdict(Counter)
    for icon in choice.icons:
        if icon.drawing.group:
            found[icon.code][icon.drawing.group] += 1
    choice.categories = {
        code: sorted(found[code], key=lambda group: (-found[code][group], group))
        for code in sorted(found)
    }
