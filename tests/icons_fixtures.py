"""A small icon corpus, made up: a few hands that draw some things with some details."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from retrv_r1.data.icons.corpus import IconCorpus, IconRow, Split
from retrv_r1.data.icons.families import family_of, hand_split
from retrv_r1.data.icons.terms import Terms

HELD: Mapping[str, Split] = {"anchor": "test", "violin": "test", "lantern": "val"}
THINGS = ("dog", "cat", "violin", "anchor", "umbrella", "bell", "house", "lantern", "file", "user")
GLYPHS = ("lucide", "carbon", "iconoir", "tabler", "mdi", "ph")
EMOJI = ("emojione", "fxemoji", "noto", "twemoji")
DETAILED = tuple(
    f"{thing} {badge}"
    for thing in ("bell", "file", "user", "house")
    for badge in ("plus", "minus", "check", "x", "off")
)
ARROWS = tuple(f"arrow {d}" for d in ("left", "right", "up", "down", "up left", "down right"))
CLOCKS = tuple(f"{hour} {end}" for hour in ("one", "two", "ten") for end in ("oclock", "thirty"))
TONES = ("light", "medium light", "medium", "medium dark", "dark")


def _names() -> Iterator[tuple[str, str, str, str, tuple[str, ...]]]:
    """(set, code, name, skin, styles) of all pictures; those with colours come first."""
    for prefix in EMOJI:
        for thing in (*THINGS, *CLOCKS):
            yield prefix, thing, thing, "", ()
        for skin in ("", *TONES):
            for role in ("waving hand", "baby"):
                shown = f"{role} {skin} skin tone" if skin else role
                yield prefix, role, shown, skin, ()
    for prefix in GLYPHS:
        for thing in (*THINGS, *DETAILED, *ARROWS):
            yield prefix, thing, thing, "", ()
            yield prefix, thing, thing, "", ("filled",)


def icon_corpus() -> IconCorpus:
    """The corpus; `violin` and `anchor` are test concepts, `lantern` is one of validation."""
    rank = {"train": 0, "val": 1, "test": 2}
    rows = []
    for number, (prefix, code, name, skin, styles) in enumerate(_names()):
        hand, concept = hand_split(family_of(prefix)), HELD.get(code, "train")
        split: Split = max(hand, concept, key=lambda s: rank[s])
        why = tuple(w for w, s in (("hands", hand), ("concepts", concept)) if s != "train")
        icon = "-".join([*name.split(), *styles])
        rows.append(
            IconRow(
                row=number, img_path=f"icons/{prefix}/{icon}.png", code=code, name=name, icon=icon,
                set=prefix, family=family_of(prefix), styles=styles, colour=prefix in EMOJI,
                split=split, why=why, hand_split=hand, concept_split=concept, skin=skin,
            )
        )  # fmt: skip
    families = {row.family: row.hand_split for row in rows if row.hand_split != "train"}
    aliases = {"house": ("home",), "dog": ("hound",)}
    return IconCorpus(tuple(rows), aliases, {}, dict(HELD), families, {"seed": 0})


def icon_terms() -> list[Terms]:
    """Search terms: tabler's train and validate, lucide's test."""

    def of(source: str, code: str, said: str, split: str) -> Terms:
        return Terms(source, (source,), code, code, "", tuple(said.split()), "en", split)  # type: ignore[arg-type]

    return [
        of("tabler", "umbrella", "rain weather shelter parasol", "train"),
        of("tabler", "dog", "pet animal puppy", "train"),
        of("tabler", "cat", "pet animal kitten", "train"),
        of("tabler", "bell", "alarm notification violin", "train"),
        of("tabler", "violin", "music fiddle", "train"),
        of("tabler", "house", "home building", "val"),
        of("lucide", "umbrella", "rain protection", "test"),
        of("lucide", "dog", "bark pet", "test"),
        of("lucide", "file", "document paper", "test"),
    ]
