"""Articles and plurals of short English names, by small rules and lists of exceptions."""

from __future__ import annotations

from functools import lru_cache


def word_set(text: str) -> frozenset[str]:
    """The words of a text."""
    return frozenset(text.split())


_PREPOSITIONS = word_set("of with in on and behind under over at for without holding in: showing")
# Words that say how a picture differs; a name that ends in one is no countable noun.
MODIFIERS = word_set(
    "left right up down top bottom upward downward on off plus minus add remove check cross x "
    "filled outline outlined alt out in open closed slash forward backward back horizontal "
    "vertical empty full half high low medium middle center small large big circle square "
    "rounded diagonal dashed"
)
_MASS = word_set(
    "rain snow fog wind water fire smoke wood wool rice bread butter cheese milk honey salt sugar "
    "flour corn money cash music news information software hardware data furniture luggage "
    "baggage traffic thunder lightning weather sushi meat beef pork garlic ginger ice coffee tea "
    "wine sake broccoli spaghetti popcorn electricity equipment jewelry jewellery cutlery laundry "
    "clothing wifi bluetooth sand grass hair gold silver steel golf tennis baseball basketball "
    "football soccer hockey badminton cricket rugby judo karate yoga love health work homework "
    "transport education science privacy security accessibility art gravity poop dust mud oil "
    "sunrise sunset winter summer spring autumn everything nothing something"
)
_SINGULAR_S = word_set(
    "gas lens bus virus iris canvas atlas cactus octopus christmas chaos tennis gps ios css js aws "
    "sms dns https http vs os ups dos nas ras pos bonus campus circus genius abacus focus status "
    "nexus lotus crocus walrus platypus sinus radius census chorus venus uranus taurus aquarius "
    "sagittarius pisces aries mars basis axis oasis analysis synthesis metropolis "
    "pancreas pegasus sos rss tls cms plus minus cross corpus hibiscus hummus"
)
_PLURALS: dict[str, str] = {
    "man": "men", "woman": "women", "person": "people", "child": "children", "foot": "feet",
    "tooth": "teeth", "mouse": "mice", "goose": "geese", "leaf": "leaves", "knife": "knives",
    "wolf": "wolves", "shelf": "shelves", "bookshelf": "bookshelves", "half": "halves",
    "loaf": "loaves", "scarf": "scarves", "calf": "calves", "thief": "thieves", "elf": "elves",
    "wife": "wives", "life": "lives", "sheep": "sheep", "fish": "fish", "deer": "deer",
    "ox": "oxen", "die": "dice", "potato": "potatoes", "tomato": "tomatoes", "hero": "heroes",
    "superhero": "superheroes", "echo": "echoes", "mosquito": "mosquitoes", "bison": "bison",
    "volcano": "volcanoes", "buffalo": "buffaloes", "mango": "mangoes", "shrimp": "shrimp",
    "squid": "squid", "aircraft": "aircraft", "spacecraft": "spacecraft", "moose": "moose",
    "axis": "axes", "quiz": "quizzes", "human": "humans", "german": "germans", "shaman": "shamans",
    "ottoman": "ottomans", "caiman": "caimans", "series": "series",
}  # fmt: skip
_PLURAL_WORDS = frozenset(_PLURALS.values()) - {"fish", "sheep", "deer", "bison", "squid"} | {
    "people", "dice", "scissors",
}  # fmt: skip
_SILENT_H = ("hour", "honest", "honor", "honour", "heir")
_YOU = (
    "uni",
    "use",
    "usa",
    "usb",
    "uk",
    "ufo",
    "url",
    "eu",
    "one",
    "once",
    "ubi",
    "ura",
    "ute",
    "uti",
)
_SAID_WITH_VOWEL = frozenset("fhlmnrsx")


@lru_cache(maxsize=1 << 17)
def article(phrase: str) -> str:
    """``a`` or ``an``, by how the first word of a phrase sounds."""
    word = phrase.split(maxsplit=1)[0].lower() if phrase.strip() else "x"
    head = word.split("-")[0]
    if len(head) == 1:
        return "an" if head in "aefhilmnorsx8" else "a"
    if word[0].isdigit():
        digits = "".join(c for c in word if c.isdigit())
        return "an" if word[0] == "8" or digits in ("11", "18") else "a"
    if word.startswith(_SILENT_H):
        return "an"
    if word.startswith(("unin", "unim", "unid")):  # uninstall, unidentified: not "you"
        return "an"
    if word.startswith(_YOU):
        return "a"
    if head[0] in "aeiou":
        return "an"
    spelled = len(head) <= 4 and not any(c in "aeiouy" for c in head) and head.isalpha()
    return "an" if spelled and head[0] in _SAID_WITH_VOWEL else "a"


def head_place(words: list[str]) -> int:
    """Place of the head noun: the last word before the first preposition."""
    for place, word in enumerate(words):
        if place and word in _PREPOSITIONS:
            return place - 1
    return len(words) - 1


def is_plural(word: str) -> bool:
    """Whether a noun looks like a plural."""
    if word in _PLURAL_WORDS:
        return True
    ends = word.endswith("s") and not word.endswith(("ss", "us", "is", "'s"))
    return ends and len(word) > 2 and word not in _SINGULAR_S


def is_mass(word: str) -> bool:
    """Whether a noun has no plural in common use."""
    return word in _MASS


def plural_of(word: str) -> str:
    """Plural of one noun."""
    if word in _PLURALS:
        return _PLURALS[word]
    if word.endswith("man") and len(word) > 4:
        return word[:-3] + "men"
    if word.endswith("y") and len(word) > 2 and word[-2] not in "aeiou":
        return word[:-1] + "ies"
    if word.endswith(("s", "x", "z", "ch", "sh")):
        return word + "es"
    return word + "s"


def countable(words: list[str]) -> bool:
    """Whether a name is a singular noun that can be counted."""
    head = words[head_place(words)]
    plain = head.isascii() and head.isalpha() and len(head) > 1
    return plain and head not in MODIFIERS and not is_mass(head) and not is_plural(head)


@lru_cache(maxsize=1 << 17)
def plural(name: str) -> str:
    """Plural of a name: "flags of france"; the name itself if it cannot be counted."""
    words = name.split()
    if not words or not countable(words):
        return name
    place = head_place(words)
    words[place] = plural_of(words[place])
    return " ".join(words)


@lru_cache(maxsize=1 << 17)
def indefinite(name: str) -> str:
    """A name with its article: "an apple", "some scissors", "some rain"."""
    words = name.split()
    if not words:
        return name
    head = words[head_place(words)]
    return f"some {name}" if is_plural(head) or is_mass(head) else f"{article(name)} {name}"
