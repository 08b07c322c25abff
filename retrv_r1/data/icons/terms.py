"""What people call icons: search terms from icon packages and from tables of emoji.

The terms are relevance judgements by people: whoever types "rain shelter" wants the icon to which
somebody gave both terms. Lucide's terms are for tests only; the others train.
"""

from __future__ import annotations

import json
import re
import tarfile
import unicodedata
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from retrv_kernels.extras import install_command
from retrv_r1.data.icons.concepts import share
from retrv_r1.data.icons.corpus import IconCorpus, IconRow
from retrv_r1.data.icons.index import Index, bag
from retrv_r1.data.icons.packages import tarball
from retrv_r1.types import RetrvError

Part = Literal["train", "val", "test"]
TEST_SOURCE = "lucide"
VAL_SHARE = 0.05
LANGUAGES: tuple[str, ...] = ("de", "fr", "es", "it", "pt", "nl", "pl", "ru", "zh", "ja", "ko")
"""Languages of emoji keywords beside English."""
_MOST_WORDS = 5
_EMOJI_SETS = (
    "noto", "twemoji", "fluent-emoji-flat", "fluent-emoji", "noto-v1", "openmoji", "emojione",
    "emojione-monotone", "fxemoji",
)  # fmt: skip
_PLAIN = re.compile(r"[\w][\w '&+.-]*")
_IDEOGRAPHS = re.compile(r"[\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af]")


@dataclass(frozen=True)
class Terms:
    """What one source calls one concept, and a line of `terms.jsonl`.

    Args:
        source: package: `tabler`, `mdi`, `fontawesome`, `emojilib`, `emojibase`, `lucide`.
        sets: sets of the corpus whose icon has the terms; twins in other sets share its code.
        name: name of the icon or emoji in the source.
        code: concept key.
        gender: gender of the icon, empty if none.
        terms: terms, without those that are the name.
        language: code of the terms' language.
        split: `test` for lucide, `val` for a twentieth of the other concepts.
    """

    source: str
    sets: tuple[str, ...]
    name: str
    code: str
    gender: str
    terms: tuple[str, ...]
    language: str = "en"
    split: Part = "train"


def clean(term: str) -> str:
    """A term as people type it; empty if it is no term.

    Terms of more than five words, with odd characters or without a letter are none.
    """
    text = unicodedata.normalize("NFC", term).replace("_", " ").strip().lower()
    if not _IDEOGRAPHS.search(text):
        text = re.sub(r"(?<=\w)-(?=\w)", " ", text)
    text = " ".join(text.split())
    ideographs = bool(_IDEOGRAPHS.search(text))
    letters = sum(c.isalpha() for c in text)
    if letters < (1 if ideographs else 2) or len(text.split()) > _MOST_WORDS or len(text) > 40:
        return ""
    return text if _PLAIN.fullmatch(text) else ""


def read_terms(corpus: IconCorpus, out: Path, *, seed: int = 0) -> list[Terms]:
    """Terms of all sources for the icons of a corpus, sorted by source, language and name.

    Args:
        out: folder of the corpus; the tarballs are in its cache.
        seed: seed of the choice of what validates.
    Raises:
        RetrvError: a tarball is missing or damaged, or PyYAML is not installed.
    """
    index = Index(corpus)
    found = [*_icon_terms(index, out), *_emoji_terms(index, out)]
    kept = []
    for terms in found:
        named = index.same(terms.code)
        words = dict.fromkeys(clean(term) for term in terms.terms)
        said = tuple(t for t in words if t and bag(t) not in named and bag(t) != bag(terms.name))
        if terms.code.startswith("flag "):  # letters of a country's code, in every language
            said = tuple(t for t in said if len(t) > 3) if terms.language == "en" else ()
        if said:
            part = _part(terms.source, terms.code, seed)
            kept.append(Terms(**asdict(terms) | {"terms": said, "split": part}))
    return sorted(kept, key=lambda t: (t.source, t.language, t.name))


def _part(source: str, code: str, seed: int) -> Part:
    if source == TEST_SOURCE:
        return "test"
    return "val" if share(seed, "terms", bag(code)) < VAL_SHARE else "train"


def _icon_terms(index: Index, out: Path) -> Iterator[Terms]:
    """Terms of icon packages; an icon is found by its name in its sets."""
    tabler = _json(tarball("@tabler/icons", out), "icons.json")
    yield from _of_sets(
        index, "tabler", ("tabler",), {k: v["tags"] for k, v in tabler.items()}, ("", "-filled")
    )
    mdi = _json(tarball("@mdi/svg", out), "meta.json")
    yield from _of_sets(index, "mdi", ("mdi",), {v["name"]: v["aliases"] for v in mdi})
    awesome = _yaml(tarball("@fortawesome/fontawesome-free", out), "metadata/icons.yml")
    terms = {str(k): (v.get("search") or {}).get("terms") or [] for k, v in awesome.items()}
    sets = ("fa7-solid", "fa7-regular", "fa6-solid", "fa6-regular", "fa-solid", "fa-regular")
    yield from _of_sets(index, "fontawesome", sets, terms)
    lucide = _json(tarball("lucide-static", out), "tags.json")
    yield from _of_sets(index, TEST_SOURCE, ("lucide",), lucide)


def _of_sets(
    index: Index,
    source: str,
    sets: Sequence[str],
    terms: Mapping[str, Iterable[Any]],
    endings: Sequence[str] = ("",),
) -> Iterator[Terms]:
    for name, said in terms.items():
        rows = [
            row
            for prefix in sets
            for end in endings
            if (row := index.by_icon.get((prefix, name + end)))
        ]
        if rows:
            drawn = tuple(dict.fromkeys(row.set for row in rows))
            texts = tuple(str(term) for term in said)
            yield Terms(source, drawn, name, rows[0].code, rows[0].gender, texts)


def _emoji_terms(index: Index, out: Path) -> Iterator[Terms]:
    """Keywords of emoji; an emoji is found in the emoji sets by its English name."""
    package = tarball("emojibase-data", out)
    english = _json(package, "en/compact.json")
    rows = _emoji_rows(index)
    known: dict[str, tuple[str, list[IconRow]]] = {}
    for emoji in english:
        label = re.sub(r"[^\w\s-]", " ", emoji["label"].lower()).replace("-", " ")
        if drawn := rows.get(bag(label)):
            known[emoji["hexcode"]] = (label, drawn)
    for language in ("en", *LANGUAGES):
        for emoji in _json(package, f"{language}/compact.json"):
            if emoji["hexcode"] in known:
                label, drawn = known[emoji["hexcode"]]
                said = [*emoji.get("tags", ()), *([] if language == "en" else [emoji["label"]])]
                yield _emoji("emojibase", label, drawn, said, language)
    by_text = {emoji["unicode"].replace("\ufe0f", ""): emoji["hexcode"] for emoji in english}
    for text, said in _json(tarball("emojilib", out), "dist/emoji-en-US.json").items():
        code = by_text.get(text.replace("\ufe0f", ""), "")
        if code in known:
            yield _emoji("emojilib", *known[code], said, "en")


def _emoji(
    source: str, label: str, drawn: Sequence[IconRow], said: Iterable[str], language: str
) -> Terms:
    sets = tuple(dict.fromkeys(row.set for row in drawn))
    first = drawn[0]
    return Terms(
        source, sets, " ".join(label.split()), first.code, first.gender, tuple(said), language
    )


def _emoji_rows(index: Index) -> Mapping[str, list[IconRow]]:
    """Pictures of the emoji sets by the key of their name, without skin tones."""
    found: dict[str, list[IconRow]] = defaultdict(list)
    for row in index.corpus.rows:
        if row.set in _EMOJI_SETS and not row.skin:
            found[bag(row.name)].append(row)
    return found


def _member(package: Path, name: str) -> bytes:
    """A file of a tarball.

    Raises:
        RetrvError: the tarball is missing or damaged, or has no such file.
    """
    try:
        with tarfile.open(package) as tar:
            handle = tar.extractfile(f"package/{name}")
            assert handle is not None
            return handle.read()
    except FileNotFoundError as error:
        raise RetrvError(f"{package} is missing: `retrv-r1 data icons` fetches it") from error
    except (tarfile.TarError, KeyError, EOFError, OSError) as error:
        raise RetrvError(
            f"{package.name} is damaged or lacks {name} ({error}); delete it and build again"
        ) from error


def _json(package: Path, name: str) -> Any:
    try:
        return json.loads(_member(package, name))
    except json.JSONDecodeError as error:
        raise RetrvError(f"{package.name}: {name} is damaged ({error}); delete it") from error


def _yaml(package: Path, name: str) -> Any:
    try:
        import yaml
    except ImportError as error:
        raise RetrvError(f"search terms need PyYAML: {install_command('data')}") from error
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    return yaml.load(_member(package, name), loader)


class Judgements:
    """Which concepts carry a term, by all terms of some sources.

    Args:
        index: index of the corpus.
        terms: terms; only those in ``language``.
        language: code of a language.
    """

    def __init__(self, index: Index, terms: Iterable[Terms], language: str = "en") -> None:
        self._holders: dict[str, set[str]] = defaultdict(set)
        self._worded: dict[str, set[str]] = defaultdict(set)
        for one in terms:
            if one.language == language:
                for term in one.terms:
                    self._holders[term].add(bag(one.code))
        if language == "en":
            for row in index.corpus.rows:
                for word in row.code.split():
                    self._worded[word].add(bag(row.code))

    def bags(self, terms: Iterable[str]) -> frozenset[str]:
        """Keys of the concepts that carry all of some terms, by judgement or in their names."""
        return frozenset(set.intersection(*(self._carry(term) for term in terms)))

    def _carry(self, term: str) -> set[str]:
        """Concepts that carry a term; a name carries its own words."""
        worded = [self._worded.get(word, set()) for word in term.split()]
        return self._holders.get(term, set()) | set.intersection(*worded)
