"""Icon sets from npm: fetches pinned tarballs, reads them, makes an SVG of an icon."""

from __future__ import annotations

import json
import shutil
import tarfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from retrv_r1.data.npm import fetch_package, tarball_name
from retrv_r1.data.pictographs.styles import BY_NAME, Style
from retrv_r1.types import RetrvError


def tarball(style: Style, cache: Path) -> Path:
    """Path of a style's tarball in the cache."""
    return cache / tarball_name(style.package, style.version)


def fetch_sets(
    names: Sequence[str], cache: Path, *, download: bool, say: Callable[[str], None]
) -> tuple[dict[str, Path], dict[str, str]]:
    """Tarballs of the npm styles in `names`, and the reason for each that is missing.

    After a failure nothing more is fetched, so that a machine without network waits only once.
    """
    found: dict[str, Path] = {}
    missing: dict[str, str] = {}
    reason = "" if download else "downloads are off"
    if not reason and shutil.which("npm") is None:
        reason = "npm is not installed"
    for style in (BY_NAME[name] for name in names if BY_NAME[name].kind == "npm"):
        path = tarball(style, cache)
        if path.exists():
            found[style.name] = path
            continue
        if not reason:
            say(f"fetching {style.package}@{style.version}")
            try:
                found[style.name] = fetch_package(style.package, style.version, cache)
                continue
            except RetrvError as error:
                reason = str(error)
        missing[style.name] = reason
    if missing:
        say(f"without the styles {', '.join(missing)}: {reason}")
    return found, missing


def read_tarball(path: Path) -> dict[str, Any]:
    """JSON files of an icon set by stem (`icons`, `chars`, `metadata` …).

    Raises:
        RetrvError: the file is damaged.
    """
    try:
        with tarfile.open(path) as tar:
            return {
                Path(member.name).stem: json.load(handle)
                for member in tar
                if member.name.endswith(".json") and (handle := tar.extractfile(member))
            }
    except (tarfile.TarError, json.JSONDecodeError, EOFError, OSError) as error:
        raise RetrvError(f"{path.name} is damaged ({error}); delete it and build again") from error


def icon_svg(icons: Mapping[str, Any], slug: str) -> str:
    """SVG document of one icon of a set."""
    icon = icons["icons"][slug]
    width, height = (icon.get(k, icons.get(k, 16)) for k in ("width", "height"))
    left, top = icon.get("left", 0), icon.get("top", 0)
    return (
        '<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" '
        f'viewBox="{left} {top} {width} {height}" width="{width}" height="{height}">'
        f"{icon['body']}</svg>"
    )
