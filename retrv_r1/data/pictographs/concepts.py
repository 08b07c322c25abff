"""The concept table: a row for each emoji sequence: name, keywords, group, base, tone, gender.

Sequences and names come from the `emoji` package (Unicode's names in English and 13 languages).
Codes are upper-case hexadecimal code points joined by `-`, without the presentation selector FE0F.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from retrv_kernels.extras import install_command
from retrv_r1.types import RetrvError

LANGUAGES: Mapping[str, str] = {
    "fr": "French",
    "de": "German",
    "es": "Spanish",
}  # of the package's 13: more would only add words, and a tiny model has a small vocabulary
TONES: Mapping[str, str] = {
    "1F3FB": "light",
    "1F3FC": "medium-light",
    "1F3FD": "medium",
    "1F3FE": "medium-dark",
    "1F3FF": "dark",
}
HAIR: Mapping[str, str] = {
    "1F9B0": "red hair",
    "1F9B1": "curly hair",
    "1F9B2": "bald",
    "1F9B3": "white hair",
}
_GENDER_SIGN = {"2640": "woman", "2642": "man"}
# Sequences whose gendered and neutral forms are different characters: code -> (base, gender).
_GENDERED: Mapping[str, tuple[str, str]] = {
    "1F468": ("1F9D1", "man"),
    "1F469": ("1F9D1", "woman"),
    "1F466": ("1F9D2", "man"),
    "1F467": ("1F9D2", "woman"),
    "1F474": ("1F9D3", "man"),
    "1F475": ("1F9D3", "woman"),
    "1F934": ("1FAC5", "man"),
    "1F478": ("1FAC5", "woman"),
    "1F385": ("1F9D1-200D-1F384", "man"),
    "1F936": ("1F9D1-200D-1F384", "woman"),
    "1F57A": ("1F483", "man"),
    "1F483": ("1F483", "woman"),
    "1F930": ("1FAC4", "woman"),
    "1FAC3": ("1FAC4", "man"),
}
# Bases of joined sequences that show several people, by a part of the sequence.
_GROUPS_BY_PART: Mapping[str, str] = {
    "1F48B": "1F48F",
    "2764": "1F491",
    "1F91D": "1F9D1-200D-1F91D-200D-1F9D1",
    "1FAEF": "1F93C",
    "1F430": "1F46F",
}
_HANDS = {"1F46B", "1F46C", "1F46D"}
_PEOPLE = {"1F468", "1F469", "1F9D1", "1F466", "1F467", "1F9D2"}
# Names of roles whose base has a gendered name.
_ROLES = {"1F483": "dancing", "1FAC4": "pregnant", "1FAC5": "person with crown"}


@dataclass(frozen=True)
class Concept:
    """An emoji sequence and its attributes.

    Args:
        code: hexadecimal code points joined by `-`, without FE0F.
        name: English name, lower case; unique in the table.
        role: name of the base: the name without tone and gender.
        names: name in each language, by language code.
        base: code of the parent without tone and gender; the concept's own code if it has none.
        tones: skin tones in order of appearance; two different ones for mixed couples.
        gender: `man`, `woman`, `person` (neutral, but gendered forms exist) or empty.
    """

    code: str
    name: str
    role: str
    keywords: tuple[str, ...]
    names: Mapping[str, str]
    group: str
    subgroup: str
    base: str
    tones: tuple[str, ...] = ()
    gender: str = ""
    hair: str = ""
    facing: str = ""

    @property
    def tone(self) -> str:
        """The skin tone; empty for none, `mixed` for two different ones."""
        return "" if not self.tones else self.tones[0] if len(set(self.tones)) == 1 else "mixed"

    @property
    def is_flag(self) -> bool:
        """Whether it is a flag."""
        return self.subgroup == "flag"


def code_of(text: str) -> str:
    """Code of an emoji string, FE0F removed."""
    return "-".join(f"{ord(c):04X}" for c in text if c != "\ufe0f")


def clean_name(raw: str) -> str:
    """Lower-case words of an `emoji` package name such as `:A_button_(blood_type):`."""
    name = unicodedata.normalize("NFC", raw.strip(":").replace("_", " ")).lower()
    name = name.replace("\u2019", "'").replace("\u2018", "'")
    name = re.sub(r"\([^)]*\)", " ", name)
    name = re.sub(r"[“”„«»\":!,;]", " ", name)
    return " ".join(name.split("/")[0].split())


@dataclass(frozen=True)
class Parts:
    """The code of a sequence's base, and its modifiers."""

    base: str
    tones: tuple[str, ...] = ()
    gender: str = ""
    hair: str = ""
    facing: str = ""


def parse(code: str) -> Parts:
    """Splits a sequence into base, tones, gender, hair and direction."""
    parts = code.split("-")
    tones = tuple(TONES[p] for p in parts if p in TONES)
    if len(parts) > len(tones):
        parts = [p for p in parts if p not in TONES]
    else:
        tones = ()
    facing = ""
    if parts[-2:] == ["200D", "27A1"]:
        parts, facing = parts[:-2], "right"
    if parts == ["1FAF1", "200D", "1FAF2"]:
        return Parts("1F91D", tones)
    gender = ""
    if len(parts) > 2 and parts[-2] == "200D" and parts[-1] in _GENDER_SIGN:
        gender, parts = _GENDER_SIGN[parts[-1]], parts[:-2]
    body = [p for p in parts if p != "200D"]
    if len(body) == 1 and body[0] in _HANDS:
        return Parts(_GROUPS_BY_PART["1F91D"], tones)
    if len(body) > 1 and body[0] in _PEOPLE:
        if all(p in _PEOPLE for p in body):
            return Parts("1F46A", tones)
        if body[-1] in _PEOPLE:
            for part, base in _GROUPS_BY_PART.items():
                if part in body:
                    return Parts(base, tones)
    base = "-".join(parts)
    if base in _GENDERED:
        base, gender = _GENDERED[base]
    elif parts[0] in ("1F468", "1F469"):
        gender = _GENDERED[parts[0]][1]
        base = "-".join(["1F9D1", *parts[1:]])
    hair = HAIR.get(parts[-1], "") if len(parts) > 1 else ""
    return Parts(base, tones, gender, hair, facing)


def _emoji_data() -> Mapping[str, Mapping[str, Any]]:
    try:
        import emoji
    except ImportError as error:
        raise RetrvError(
            f"the pictograph set needs the `emoji` package: {install_command('data')}"
        ) from error
    emoji.config.load_language(list(LANGUAGES))
    return emoji.EMOJI_DATA


def _is_flag(code: str) -> bool:
    return code.startswith("1F3F4-E0067") or bool(re.fullmatch(r"(1F1[EF][0-9A-F]-?){2}", code))


def _english(code: str, row: Mapping[str, Any]) -> str:
    name = clean_name(row["en"])
    return f"flag of {name}" if _is_flag(code) and not name.startswith("flag") else name


def concept_table(
    keywords: Mapping[str, Sequence[str]], groups: Mapping[str, str], subgroups: Mapping[str, str]
) -> dict[str, Concept]:
    """All fully qualified sequences of the `emoji` package, by code, in code-point order.

    Args:
        keywords: English keywords by code; a code without any gets the package's aliases.
        groups: group by code; code-point ranges give those that are missing.
        subgroups: finer group by code; may be incomplete.

    Raises:
        RetrvError: the `emoji` package is not installed.
    """
    from retrv_r1.data.pictographs.groups import group_of

    rows = {code_of(text): row for text, row in _emoji_data().items() if row["status"] == 2}
    ordered = sorted(rows, key=lambda code: [int(p, 16) for p in code.split("-")])
    parsed = {code: parse(code) for code in ordered}
    gendered = {p.base for p in parsed.values() if p.gender}
    seen: dict[str, str] = {}
    table: dict[str, Concept] = {}
    for code in ordered:
        row, parts = rows[code], parsed[code]
        if parts.base not in rows:  # a parent without a sequence of its own
            parts = replace(parts, base=code)
        name = _english(code, row)
        if name in seen:
            name = " ".join(row["en"].strip(":").replace("_", " ").lower().split())
        seen[name] = code
        aliases = [clean_name(a) for a in row.get("alias", ())]
        words = keywords.get(code) or keywords.get(parts.base) or aliases
        gender = parts.gender or ("person" if parts.base in gendered else "")
        table[code] = Concept(
            code=code,
            name=name,
            role=_ROLES.get(parts.base) or _english(parts.base, rows[parts.base]),
            keywords=tuple(dict.fromkeys(w for w in words if w and w != name)),
            names={lang: clean_name(row[lang]) for lang in LANGUAGES if row.get(lang)},
            group="flags" if _is_flag(code) else groups.get(parts.base) or group_of(parts.base),
            subgroup="flag" if _is_flag(code) else subgroups.get(parts.base, ""),
            base=parts.base,
            tones=parts.tones,
            gender=gender,
            hair=parts.hair,
            facing=parts.facing,
        )
    return table
