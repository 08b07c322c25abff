"""Packages from npm: pinned tarballs, fetched with `npm pack` into a cache."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

from retrv_r1.types import RetrvError


def tarball_name(package: str, version: str) -> str:
    """File name that `npm pack` gives a package."""
    return f"{package.removeprefix('@').replace('/', '-')}-{version}.tgz"


def fetch_package(package: str, version: str, cache: Path) -> Path:
    """Path of a package's tarball in `cache`, fetched with `npm pack` if it is not there.

    Raises:
        RetrvError: npm is missing, or the fetch failed.
    """
    target = cache / tarball_name(package, version)
    if target.exists():
        return target
    if shutil.which("npm") is None:
        raise RetrvError("npm is not installed: install Node.js, which brings it")
    cache.mkdir(parents=True, exist_ok=True)
    temporary = cache / f"tmp-{os.getpid()}"
    temporary.mkdir(exist_ok=True)
    try:
        done = subprocess.run(
            ["npm", "pack", "--silent", "--fetch-retries=1", f"{package}@{version}"],
            cwd=temporary,
            capture_output=True,
            text=True,
            timeout=600,
            check=False,
        )
        packed = next(iter(temporary.glob("*.tgz")), None)
        if done.returncode or packed is None:
            lines = done.stderr.strip().splitlines()
            raise RetrvError(f"npm pack {package}@{version}: {' '.join(lines[-1:])}")
        os.replace(packed, target)
    except subprocess.TimeoutExpired as error:
        raise RetrvError(f"npm pack {package} took more than 600 s") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return target
