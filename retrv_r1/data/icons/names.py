"""What an icon's name says: the thing, and the words of style, size, skin and gender around it."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace

from retrv_r1.data.icons.sets import IconSet


def _set(words: str) -> frozenset[str]:
    return frozenset(words.split())


STYLES: Mapping[str, str] = {
    **dict.fromkeys(("outline", "outlined", "line", "linear", "stroke", "o"), "outline"),
    **dict.fromkeys(("filled", "fill", "solid", "f", "baseline"), "filled"),
    **dict.fromkeys(("duotone", "twotone", "duo", "tone"), "duotone"),
    **dict.fromkeys(("rounded", "round"), "rounded"),
    **dict.fromkeys(("alt", "alternate", "variant"), "alternate"),
    **{word: word for word in ("sharp", "bold", "thin", "light", "regular", "broken")},
    **{word: word for word in ("flat", "remix", "print", "expressive")},
}
"""Style words of names → the style that they mean."""
_ALWAYS = frozenset(("outline", "outlined", "filled", "duotone", "twotone", "linear"))
_NUMBERS = {"one": "1", "two": "2", "three": "3", "four": "4", "five": "5", "six": "6"}
_NUMERIC = _set(
    "dice die domino number numeric digit clock time timer hour level signal battery beaufort uv "
    "index keycap looks counter exposure replay forward rewind backward column columns row rows "
    "wifi bar bars rating heading gauge grade mahjong age moon phase tally roman circle square "
    "hexagon"
)
"""Words after which a number says what is meant, and not which drawing."""
_SKIN = re.compile(r"-((?:medium-)?(?:light|dark)|medium)-skin-tone")
_BARE_SKIN = re.compile(r"-(medium-light|medium-dark|light|dark|medium)$")
_GENDERS = {"man": "man", "men": "man", "woman": "woman", "women": "woman"} | {
    "person": "",
    "people": "",
}
_CODE_POINT = re.compile(r"u[0-9a-f]{4,5}")
_KEYS = frozenset(("ctrl", "key", "keyboard", "option"))  # with these, "alt" is a key's name
_STATES = frozenset(("alerted", "badged"))  # of a drawing in a style: "bell-solid-alerted"
_LONGEST = 8  # words; longer names are lists of tags


@dataclass(frozen=True)
class IconName:
    """What a name says.

    Args:
        words: words of the thing, in order.
        shown: words of the readable name, with gender and skin, without style.
        styles: styles, sorted.
        size: pixel size, 0 if none is named.
        number: number of the drawing among those of the same words; empty if none.
        skin, gender: attributes of people, empty if none.
    """

    words: tuple[str, ...]
    shown: tuple[str, ...]
    styles: tuple[str, ...] = ()
    size: int = 0
    number: str = ""
    skin: str = ""
    gender: str = ""


def read_names(icons: IconSet) -> dict[str, IconName]:
    """What the names of a set say, by name, aliases too; names that say nothing are missing."""
    names = [*icons.drawings, *icons.aliases]
    rules = _Rules(icons, names)
    found = {}
    for name in names:
        read = rules.read(name)
        if read is not None:
            found[name] = read
    return found


class _Rules:
    """The style words of one set, from its own tables and from what its names show."""

    def __init__(self, icons: IconSet, names: Collection[str]) -> None:
        self._names = frozenset(names)
        self._emoji = icons.info.get("category") == "Emoji" or icons.prefix == "fluent-emoji"
        self._bare_skin = icons.prefix.startswith("fluent-emoji")
        self._prefixes = frozenset(icons.prefixes)
        table = {token for suffix in icons.suffixes for token in suffix.split("-")}
        self._table = {word for word in table if word in STYLES}
        self._sizes = {t for t in table if re.fullmatch(r"\d+(px)?", t)}
        self._suffixes = _ALWAYS | self._table | self._common_suffixes(icons)
        self._series = self._numbered()

    def _common_suffixes(self, icons: IconSet) -> set[str]:
        """Ambiguous style words that end many names whose stems the set has without them too."""
        stems: dict[str, set[str]] = defaultdict(set)
        for name in icons.drawings:
            stem, _, last = name.rpartition("-")
            if last in self._sizes:
                stem, _, last = stem.rpartition("-")
            stems[last].add(stem)
        common = set()
        for word, of in stems.items():
            size = re.fullmatch(r"1[1-6]|20|24|32|48|\d\dpx", word)
            if not (word in STYLES or size) or len(of) < max(4, 0.03 * len(icons.drawings)):
                continue
            others = [w for w in stems if w != word and (w in STYLES or w in self._sizes)]
            twins = sum(s in self._names or any(s in stems[w] for w in others) for s in of)
            if twins >= 0.3 * len(of) or size:
                (self._sizes if size else common).add(word)
        return common

    def _numbered(self) -> Counter[str]:
        """Number of numbered drawings of each stem."""
        return Counter(
            m[1] for name in self._names if (m := re.fullmatch(r"(.+)-[1-9]\d?", self._stem(name)))
        )

    def _stem(self, name: str) -> str:
        """A name without style words and size at its end."""
        return "-".join(self._split(name)[0])

    def _split(self, name: str) -> tuple[list[str], set[str], int]:
        """Words, styles and size of a name."""
        words = [word for word in re.split(r"[-_\s]+", name.lower()) if word]
        styles, size = set(), 0
        if len(words) > 1 and words[0] in self._prefixes:
            styles.add(STYLES.get(words.pop(0), ""))
        if len(words) > 2 and words[-1] in _STATES and words[-2] in STYLES:
            styles.add(STYLES[words.pop(-2)])
        while len(words) > 1:
            last = words[-1]
            if last == "tone" and words[-2] == "two" and len(words) > 2:
                words = words[:-1]
            elif last in self._sizes and not size:
                size = int(last.removesuffix("px"))
                words.pop()
                continue
            elif last not in self._suffixes and not self._alternate(words):
                break
            styles.add("duotone" if last == "tone" else STYLES[last])
            words.pop()
        return words, styles - {""}, size

    def _alternate(self, words: list[str]) -> bool:
        """Whether the last word calls it another drawing of the thing."""
        return words[-1] in ("alt", "alternate") and words[-2] not in _KEYS

    def read(self, name: str) -> IconName | None:
        """What a name says; None if it says nothing."""
        skins = _SKIN.findall(name)
        plain = _SKIN.sub("", name)
        if self._bare_skin:
            match = _BARE_SKIN.search(plain)
            if match and plain[: match.start()] in self._names:
                skins, plain = [match[1]], plain[: match.start()]
        words, styles, size = self._split(plain)
        words, number = self._without_number(words)
        if number:  # "bag-alt-1"
            words, more, _ = self._split("-".join(words))
            styles |= more
        words = [word for word in words if not _CODE_POINT.fullmatch(word)]
        if not words or len(words) > _LONGEST or not any(re.search("[a-z]", w) for w in words):
            return None
        skin = " and ".join(dict.fromkeys(s.replace("-", " ") for s in skins))
        shown = (*words, *((*skin.split(), "skin", "tone") if skin else ()))
        read = IconName(tuple(words), shown, tuple(sorted(styles)), size, number, skin)
        return _with_gender(read) if self._emoji else read

    def _without_number(self, words: list[str]) -> tuple[list[str], str]:
        """Words without the number that only counts drawings, and that number."""
        last = words[-1]
        number = _NUMBERS.get(last, last)
        if len(words) == 1:
            match = re.fullmatch(r"([a-z]{4,})(\d)", last)
            return ([match[1]], match[2]) if match and match[1] in self._names else (words, "")
        stem = "-".join(words[:-1])
        if number.isdigit() and len(number) <= 2:
            series = self._series[stem] >= 9 or words[-2] in _NUMERIC
            spelled = last in _NUMBERS and not {stem, stem + "-one"} & self._names
            series = series or len(words[-2]) == 1  # "h-4"
            if number.startswith("0") or (int(number) <= 12 and not series and not spelled):
                return words[:-1], number
        match = re.fullmatch(r"([a-z]{3,})(\d)", last)
        if match and f"{stem}-{match[1]}" in self._names:
            return [*words[:-1], match[1]], match[2]
        return words, ""


def _with_gender(read: IconName) -> IconName:
    """A name of an emoji set with its gender as an attribute, and the same words for all genders.

    What somebody does stays with `person`, what somebody is stands alone: "woman golfing" →
    "person golfing", "man firefighter" → "firefighter".
    """
    first, *rest = read.words
    if first not in _GENDERS or rest[:1] in (["and"], ["s"]):
        return read
    if not rest:
        return replace(read, gender=_GENDERS[first])
    doing = any(word.endswith("ing") for word in rest) or rest[-1] in ("hair", "beard", "bald")
    person = doing or rest[0] in ("in", "with")
    words = ("person", *rest) if person else tuple(rest)
    return replace(read, words=words, gender=_GENDERS[first])


_ENDS = (("ies", "y"), ("ches", "ch"), ("shes", "sh"), ("sses", "ss"), ("xes", "x"), ("s", ""))
_NO_PLURAL = _set(
    "news glasses scissors pants jeans binoculars headphones stairs shorts tools lens bus gas "
    "canvas atlas christmas chess alias bias analytics physics mathematics sms gps css js us is as "
    "has this yes process access always plus minus status campus virus focus radius bonus previous "
    "series species tennis axis basis analysis paris texas swiss cosmos chaos kudos ios os dos tos "
    "asparagus cactus octopus walrus hippopotamus citrus corpus lotus crocus menus"
)


def singular(word: str) -> str:
    """A word without the ending of a plural, where that is safe."""
    if len(word) < 4 or word in _NO_PLURAL or word.endswith(("ss", "us", "is", "ous")):
        return word
    for end, instead in _ENDS:
        if word.endswith(end) and len(word) > len(end) + 1:
            return word[: -len(end)] + instead
    return word


_SMALL = _set("a an the of with and in on for to")


def group_key(words: Collection[str]) -> str:
    """Key of names that mean the same for a split: singular words in any order, without small ones.

    "violins", "violin" and "with violin" share a key; "violin player" has another.
    """
    return " ".join(sorted({singular(word) for word in words if word not in _SMALL} or set(words)))
