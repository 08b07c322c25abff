"""Joins icon slugs to emoji codes; slugs without a certain code are dropped."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Mapping
from typing import Any

from retrv_r1.data.pictographs.concepts import TONES, Concept, parse
from retrv_r1.data.pictographs.groups import GROUP_OF_CATEGORY
from retrv_r1.data.pictographs.synonyms import synonyms

_TONE_SUFFIX = re.compile(r"-(light|medium-light|medium|medium-dark|dark)(-skin-tone)?$")
_TONE_NUMBER = re.compile(r"-tone([1-5])$")


def normalise(name: str) -> str:
    """Letters and digits only, lower case, no accents: `Cat Face` and `catface` are one."""
    plain = unicodedata.normalize("NFKD", name.lower().replace("&", "and"))
    return re.sub(r"[^a-z0-9]", "", plain)


def split_tone(slug: str) -> tuple[str, str]:
    """Slug without its tone suffix, and the tone (`light` … `dark`) or an empty string."""
    if match := _TONE_NUMBER.search(slug):
        return slug[: match.start()], list(TONES.values())[int(match.group(1)) - 1]
    if match := _TONE_SUFFIX.search(slug):
        return slug[: match.start()], match.group(1)
    return slug, ""


class Joiner:
    """Maps slugs to codes by the sets' own character tables, then by names.

    Names come from the `emoji` package, from the slugs and aliases of every set with a character
    table, and from a short table of synonyms. A name of two codes is not used.

    Args:
        concepts: concept table.
        packs: JSON files of each icon set, by name of the set and stem of the file.
    """

    def __init__(self, concepts: Mapping[str, Concept], packs: Mapping[str, Mapping[str, Any]]):
        self._concepts = concepts
        self._packs = packs
        self._synonyms = {name: synonyms(name) for name in packs}
        self._by_name: dict[str, str] = {}
        self._toned = {
            (self._without_tone(c.code), c.tones[0]): c.code
            for c in concepts.values()
            if len(c.tones) == 1
        }
        self._add_names((normalise(c.name), c.code) for c in concepts.values())
        self._add_names((normalise(alias), code) for code, alias in _flag_names(concepts))
        for pack in packs.values():
            self._add_names(self._known_slugs(pack))

    @staticmethod
    def _without_tone(code: str) -> str:
        return "-".join(p for p in code.split("-") if p not in TONES) or code

    def _add_names(self, pairs: Iterable[tuple[str, str]]) -> None:
        """Adds (name, code) pairs whose name is new and has one code only among the pairs."""
        codes_of: dict[str, set[str]] = {}
        for name, code in pairs:
            codes_of.setdefault(name, set()).add(code)
        for name, codes in codes_of.items():
            if len(codes) == 1:
                self._by_name.setdefault(name, codes.pop())

    def _character_table(self, pack: Mapping[str, Any]) -> dict[str, str]:
        """Code of each slug in a set's own character table."""
        table: dict[str, str] = {}
        for key, slug in pack.get("chars", {}).items():
            code = "-".join(p for p in key.upper().split("-") if p != "FE0F")
            if code in self._concepts:
                table.setdefault(slug, code)
        return table

    def _known_slugs(self, pack: Mapping[str, Any]) -> Iterable[tuple[str, str]]:
        chars = self._character_table(pack)
        for slug, code in chars.items():
            yield normalise(slug), code
        for alias, row in pack["icons"].get("aliases", {}).items():
            parent = row.get("parent")
            flipped = row.keys() & {"hFlip", "vFlip", "rotate"}
            if parent in chars and not flipped:
                yield normalise(alias), chars[parent]

    def code(self, slug: str) -> str | None:
        """Code of a slug by its name, or None."""
        if exact := self._by_name.get(normalise(slug)):
            return exact
        bare, tone = split_tone(slug)
        base = self._by_name.get(normalise(bare))
        return self._toned.get((base, tone)) if base and tone else None

    def join(self, name: str) -> tuple[dict[str, str], list[str]]:
        """Slug of each code in one set, and the slugs that could not be joined."""
        pack = self._packs[name]
        chars = self._character_table(pack)
        joined = {code: slug for slug, code in chars.items() if slug in pack["icons"]["icons"]}
        unjoined = []
        for slug in pack["icons"]["icons"]:
            if slug in chars:
                continue
            code = self._code_in(name, slug, pack)
            if code is None:
                unjoined.append(slug)
            else:
                joined.setdefault(code, slug)
        return joined, unjoined

    def _code_in(self, name: str, slug: str, pack: Mapping[str, Any]) -> str | None:
        if slug in self._synonyms[name]:
            return self._by_name.get(normalise(self._synonyms[name][slug]))
        if name == "streamline-emojis":  # `-1`, `-2` … number the drawings of one thing
            if slug in pack.get("metadata", {}).get("categories", {}).get("Flags", ()):
                return self._by_name.get(normalise(f"flag of {slug}")) or self.code(slug)
            bare = re.sub(r"-1$", "", slug)
            if re.search(r"-[2-9]$", bare) and bare != "pool-8":
                return None
            return self.code(bare)
        return self.code(slug)

    def groups(self) -> dict[str, str]:
        """Group of each code in the sets' own metadata."""
        found: dict[str, str] = {}
        for name in ("noto", "twemoji", "fluent-emoji-flat"):
            if name not in self._packs:
                continue
            chars = self._character_table(self._packs[name])
            for label, slugs in self._packs[name]["metadata"].get("categories", {}).items():
                for slug in slugs:
                    if label in GROUP_OF_CATEGORY and slug in chars:
                        found.setdefault(parse(chars[slug]).base, GROUP_OF_CATEGORY[label])
        return found


def _flag_names(concepts: Mapping[str, Concept]) -> Iterable[tuple[str, str]]:
    for concept in concepts.values():
        if concept.is_flag:
            country = concept.name.removeprefix("flag of ")
            for form in ("flag for {}", "flag {}", "flag for flag {}", "{} flag"):
                yield concept.code, form.format(country)
