"""Optional Debian packages: keywords and groups of CLDR, glosses of WordNet."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from xml.etree import ElementTree

from retrv_r1.data.pictographs.concepts import Concept, clean_name, code_of
from retrv_r1.types import RetrvError

CLDR = Path("/usr/share/unicode/cldr/common")
WORDNET = Path("/usr/share/wordnet")
# WordNet's lexicographer files with nouns that an emoji of a group can show.
_LEX_FILES: Mapping[str, frozenset[int]] = {
    "animals": frozenset({5, 20}),
    "food": frozenset({13, 20}),
    "objects": frozenset({6}),
    "travel": frozenset({6, 15, 17, 19}),
    "activities": frozenset({4, 6}),
    "people": frozenset({8, 18}),
    "symbols": frozenset({6}),
}
_GLOSS_WORDS = 9


def cldr_keywords(root: Path = CLDR) -> dict[str, list[str]]:
    """English keywords by code, from CLDR's annotations; empty without the package.

    Raises:
        RetrvError: a file exists and cannot be parsed.
    """
    found: dict[str, list[str]] = {}
    for folder in ("annotations", "annotationsDerived"):
        path = root / folder / "en.xml"
        if not path.exists():
            continue
        try:
            rows = ElementTree.parse(path).iter("annotation")
        except ElementTree.ParseError as error:
            raise RetrvError(
                f"{path} cannot be parsed ({error}); reinstall unicode-cldr-core"
            ) from error
        for row in rows:
            if row.get("type") is None and row.text:
                words = [clean_name(word) for word in row.text.split("|")]
                found[code_of(row.get("cp", ""))] = [w for w in words if w]
    return found


def cldr_version(root: Path = CLDR) -> str:
    """Year in the header of CLDR's English annotations; empty without the package."""
    path = root / "annotations" / "en.xml"
    if not path.exists():
        return ""
    match = re.search(r"Copyright © \d+-(\d+)", path.read_text(encoding="utf-8")[:600])
    return match.group(1) if match else "unknown"


def cldr_subgroups(root: Path = CLDR) -> dict[str, str]:
    """Label by code, from CLDR's `labels.txt` (older emoji only); empty without the package."""
    path = root / "properties" / "labels.txt"
    found: dict[str, str] = {}
    if not path.exists():
        return found
    for line in path.read_text(encoding="utf-8").splitlines():
        fields = [field.strip() for field in line.split(";")]
        if line.startswith("[") and len(fields) == 3:
            for text in _expand(fields[0].strip("[]")):
                found[code_of(text)] = fields[2]
    return found


def _expand(body: str) -> list[str]:
    """Members of a UnicodeSet of characters, ranges and `{sequences}`."""
    members = [m.group(1) for m in re.finditer(r"\{([^}]*)\}", body)]
    body = re.sub(r"\{[^}]*\}|[\s\\]", "", body)
    for match in re.finditer(r"(.)-(.)|(.)", body):
        first, last, single = match.groups()
        if single:
            members.append(single)
        else:
            members.extend(chr(c) for c in range(ord(first), ord(last) + 1))
    return members


def wordnet_glosses(concepts: Mapping[str, Concept], root: Path = WORDNET) -> dict[str, str]:
    """Short gloss by code: the first noun sense of the name; empty without WordNet.

    Only base concepts have one, if their whole name is a noun lemma whose first sense is in a
    lexicographer file that suits the group. A gloss ends at its first clause; one of more than
    nine words, or with the name in it, is dropped.

    Raises:
        RetrvError: a file exists and is not in WordNet's format.
    """
    index, data = root / "index.noun", root / "data.noun"
    if not (index.exists() and data.exists()):
        return {}
    try:
        first = {}
        for line in index.read_text(encoding="utf-8").splitlines():
            if not line.startswith(" "):
                fields = line.split()
                first[fields[0]] = fields[6 + int(fields[3])]
        synsets = {
            line[:8]: line
            for line in data.read_text(encoding="utf-8").splitlines()
            if not line.startswith(" ")
        }
        glosses = {}
        for code, concept in concepts.items():
            line = synsets.get(first.get(concept.name.replace(" ", "_"), ""), "")
            if concept.base != code or not line:
                continue
            head, _, text = line.partition(" | ")
            gloss = _short(text)
            lex = int(head.split()[1])
            if lex in _LEX_FILES.get(concept.group, ()) and concept.name not in gloss:
                glosses[code] = gloss
    except (IndexError, ValueError) as error:
        raise RetrvError(
            f"{root} is not a WordNet database ({error}); reinstall wordnet-base"
        ) from error
    shared = list(glosses.values())
    return {code: g for code, g in glosses.items() if g and shared.count(g) == 1}


def _short(text: str) -> str:
    gloss = re.sub(r"\([^)]*\)", " ", text.split(";")[0]).lower()
    words = re.sub(r"[^a-z0-9' -]", " ", gloss).split()
    if len(words) > _GLOSS_WORDS:
        words = re.sub(r"[^a-z0-9' -]", " ", gloss.split(",")[0]).split()
    return " ".join(words) if 2 <= len(words) <= _GLOSS_WORDS else ""
