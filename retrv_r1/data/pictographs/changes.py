"""Changes of one concept into another: tone, gender, hair, direction, colour, time, face."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from retrv_r1.data.pictographs.concepts import Concept

COLOURS = (
    "red", "orange", "yellow", "green", "blue", "light blue", "purple", "brown", "black",
    "white", "grey", "pink",
)  # fmt: skip
_POINTING = ("left", "right", "up", "down")


@dataclass(frozen=True)
class Change:
    """A change and the wordings that ask for it.

    Args:
        source, target: codes of the concepts.
        kind: `tone`, `gender`, `tone and gender`, `hair`, `direction`, `colour`, `time`, `face`
            or `animal`.
        phrases: equivalent wordings.
    """

    kind: str
    source: str
    target: str
    phrases: tuple[str, ...]


def _tone_phrases(tone: str) -> tuple[str, ...]:
    if not tone:
        return ("without a skin tone", "with plain yellow skin")
    return (f"with {tone} skin tone", f"the same with {tone} skin", f"change to {tone} skin tone")


def _noun(target: Concept) -> str:
    """Noun for a gender: `man`, or `boy` for a child."""
    child = {"man": "boy", "woman": "girl", "person": "child"}
    return child[target.gender] if target.base == "1F9D2" else target.gender


def _gender_phrases(noun: str) -> tuple[str, ...]:
    return (f"as a {noun}", f"the same but a {noun}", f"make it a {noun}")


def _variants(members: list[Concept]) -> Iterable[Change]:
    """Changes within one base: one attribute, or tone and gender together."""
    for source in members:
        for target in members:
            if source is target or source.hair != target.hair:
                continue
            tone = target.tone if source.tone != target.tone else None
            gender = target.gender if source.gender != target.gender else None
            if source.facing != target.facing:
                if tone is None and gender is None and target.facing:
                    phrases = ("facing right", "turned to the right", "the same facing right")
                    yield Change("direction", source.code, target.code, phrases)
            elif tone is not None and gender:
                if tone:
                    noun = _noun(target)
                    asked = (
                        f"as a {noun} with {tone} skin tone",
                        f"make it a {noun} with {tone} skin",
                    )
                    yield Change("tone and gender", source.code, target.code, asked)
            elif tone is not None:
                yield Change("tone", source.code, target.code, _tone_phrases(tone))
            elif gender:
                yield Change("gender", source.code, target.code, _gender_phrases(_noun(target)))


def _hair(concepts: Iterable[Concept]) -> Iterable[Change]:
    heads = {
        (c.tone, c.gender, c.hair): c.code
        for c in concepts
        if c.base == "1F9D1" or (c.hair and c.base.startswith("1F9D1-200D-1F9B"))
    }
    for (tone, gender, hair), code in heads.items():
        for (tone2, gender2, hair2), target in heads.items():
            if (tone, gender) == (tone2, gender2) and hair != hair2 and hair2:
                said = "bald" if hair2 == "bald" else f"with {hair2}"
                phrases = (said, f"the same {said}", f"the same person {said}")
                yield Change("hair", code, target, phrases)


def _substituted(concepts: Mapping[str, Concept]) -> Iterable[Change]:
    """Changes between concepts whose names differ in one colour or one direction."""
    slots: dict[tuple[str, str, str], list[tuple[str, Concept]]] = defaultdict(list)
    for concept in concepts.values():
        words = concept.name.split()
        if concept.is_flag or concept.hair or "and" in words:
            continue
        for kind, values in (("colour", COLOURS), ("direction", _POINTING)):
            for value in sorted(values, key=len, reverse=True):
                frame = f" {concept.name} ".replace(f" {value} ", " _ ", 1)
                if frame != f" {concept.name} ":
                    slots[kind, frame, concept.tone].append((value, concept))
                    break
    for (kind, frame, _), members in slots.items():
        for was, source in members:
            for value, target in members:
                if was == value or source is target:
                    continue
                if kind == "colour":
                    phrases = (f"in {value}", f"the same in {value}", f"make it {value}")
                else:
                    verb = "tilted" if "tilted" in frame else "pointing"
                    phrases = (f"{verb} {value}", f"the same {verb} {value}", f"turn it {value}")
                yield Change(kind, source.code, target.code, phrases)


def _clocks(concepts: Mapping[str, Concept]) -> Iterable[Change]:
    faces = [f"{0x1F550 + i // 2 + (12 if i % 2 else 0):X}" for i in range(24)]
    steps = (
        (1, ("half an hour later", "30 minutes later")),
        (2, ("one hour later", "an hour later")),
        (-2, ("one hour earlier", "an hour earlier")),
    )
    for i, code in enumerate(faces):
        for step, phrases in steps:
            target = faces[(i + step) % len(faces)]
            if code in concepts and target in concepts:
                yield Change("time", code, target, phrases)


def _faces(concepts: Mapping[str, Concept]) -> Iterable[Change]:
    by_name = {c.name: c for c in concepts.values()}
    for name, animal in by_name.items():
        face = by_name.get(f"{name} face")
        if face and animal.group == face.group == "animals":
            only = ("only its face", "the same animal but its face", "just the face")
            whole = ("the whole animal", "the same animal with its body")
            yield Change("face", animal.code, face.code, only)
            yield Change("face", face.code, animal.code, whole)
    cats = {
        "grinning cat": "grinning face",
        "grinning cat with smiling eyes": "grinning face with smiling eyes",
        "cat with tears of joy": "face with tears of joy",
        "smiling cat with heart-eyes": "smiling face with heart-eyes",
        "kissing cat": "kissing face",
        "crying cat": "crying face",
    }
    for cat, face_name in cats.items():
        if cat in by_name and face_name in by_name:
            one, two = by_name[cat].code, by_name[face_name].code
            yield Change("animal", two, one, ("as a cat", "the same but a cat"))
            yield Change("animal", one, two, ("not as a cat", "the same without the cat"))


def changes(concepts: Mapping[str, Concept]) -> list[Change]:
    """All changes between concepts of the table, in a fixed order, without mixed couples."""
    members: dict[str, list[Concept]] = defaultdict(list)
    for concept in concepts.values():
        if concept.tone != "mixed":
            members[concept.base].append(concept)
    found = [change for base in members.values() for change in _distinct_variants(base)]
    found += _hair(c for c in concepts.values() if c.tone != "mixed")
    found += _substituted(concepts)
    found += _clocks(concepts)
    found += _faces(concepts)
    unique = {(c.source, c.target, c.kind): c for c in found}
    return list(unique.values())


def _distinct_variants(members: list[Concept]) -> Iterable[Change]:
    """Changes between the variants of a base that their attributes tell apart."""
    # Couples and families have members with equal attributes.
    keys = [(c.tone, c.gender, c.hair, c.facing) for c in members]
    clear = [c for c, key in zip(members, keys, strict=True) if keys.count(key) == 1]
    return _variants(clear)
