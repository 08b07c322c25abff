"""The attribution file that the pictures' licences require."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from retrv_r1.data.pictographs.sources import Drawings


def attribution(drawings: Sequence[Drawings], cldr: str, glosses: Mapping[str, str]) -> str:
    """Markdown with author, licence, version and address of every source in use."""
    lines = [
        "# Attribution",
        "",
        "The pictures were rendered from these works: cropped to their drawing, padded to a",
        "square and reduced. Pictures of CC BY-SA works stay under CC BY-SA.",
        "",
        "| style | author | licence | package | source |",
        "|---|---|---|---|---|",
    ]
    for d in drawings:
        s = d.style
        package = f"{s.package} {d.version}"
        lines.append(f"| {s.name} | {s.author} | {s.licence} | {package} | {s.url} |")
    lines += [
        "",
        "Names: the Python package `emoji` (BSD), which carries Unicode's names (Unicode licence).",
    ]
    if cldr:
        lines.append(f"Keywords and labels: Unicode CLDR, {cldr} (Unicode-DFS-2016).")
    if glosses:
        lines.append("Glosses: WordNet 3.0, Copyright 2006 Princeton University (WordNet licence).")
    return "\n".join(lines) + "\n"
