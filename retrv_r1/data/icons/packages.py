"""The packages of the icon corpus, pinned: the icons, and what people call them."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from pathlib import Path

from retrv_r1.data.icons.sets import PACKAGE, VERSION
from retrv_r1.data.npm import fetch_package, tarball_name

PACKAGES: Mapping[str, str] = {
    PACKAGE: VERSION,
    "@tabler/icons": "3.52.0",
    "lucide-static": "1.62.0",
    "@fortawesome/fontawesome-free": "7.3.1",
    "@mdi/svg": "7.4.47",
    "emojilib": "4.0.3",
    "emojibase-data": "17.0.0",
}
"""Version of each package."""


def folder_of(out: Path) -> Path:
    """Folder of a corpus in which its tarballs are."""
    return out / ".cache" / "npm"


def tarball(package: str, out: Path) -> Path:
    """Path of a package's tarball beside a corpus."""
    return folder_of(out) / tarball_name(package, PACKAGES[package])


def fetch_all(out: Path, say: Callable[[str], None]) -> dict[str, Path]:
    """Tarballs of all packages, by package; those that are missing are fetched.

    Raises:
        RetrvError: a fetch failed.
    """
    found = {}
    for package, version in PACKAGES.items():
        if not tarball(package, out).exists():
            say(f"fetching {package}@{version}")
        found[package] = fetch_package(package, version, folder_of(out))
    return found


def sha256_of(path: Path) -> str:
    """Hexadecimal SHA-256 of a file."""
    with path.open("rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()
