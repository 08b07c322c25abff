"""The page at ``/``: its files and their headers."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

pytest.importorskip("fastapi", reason="the page is served by the extra serve")

from fastapi import FastAPI
from starlette.testclient import TestClient

from retrv_r1.serve.page import mount_page

ROOT = Path(__file__).parent.parent
FOLDER = ROOT / "retrv_r1" / "serve" / "page"
FILES = sorted(path.relative_to(FOLDER).as_posix() for path in FOLDER.rglob("*") if path.is_file())


@pytest.fixture(scope="module")
def client() -> TestClient:
    app = FastAPI()
    mount_page(app)
    return TestClient(app)


@pytest.mark.parametrize("name", ["", "page/report.css", *(f"page/{name}" for name in FILES)])
def test_a_file_comes_with_the_policy_and_is_not_sent_twice(client, name):
    if name == "page/index.html":
        assert client.get(f"/{name}").status_code == 404  # it is at /
        return
    first = client.get(f"/{name}")
    assert first.status_code == 200
    policy = first.headers["content-security-policy"]
    assert policy.startswith("default-src 'none'; ")
    assert "unsafe" not in policy and "*" not in policy and "http" not in policy
    assert first.headers["cache-control"] == "no-cache"
    assert first.headers["x-content-type-options"] == "nosniff"
    again = client.get(f"/{name}", headers={"If-None-Match": first.headers["etag"]})
    assert (again.status_code, again.content) == (304, b"")
    other = client.get(f"/{name}", headers={"If-None-Match": '"another"'})
    assert (other.status_code, other.content) == (200, first.content)
    assert client.head(f"/{name}").headers["content-length"] == str(len(first.content))


@pytest.mark.parametrize(
    "name", ["../page.py", "%2e%2e/page.py", "example", "no.js", "/etc/passwd"]
)
def test_nothing_beside_the_page_is_served(client, name):
    assert client.get(f"/page/{name}").status_code == 404


def test_the_page_has_the_style_of_the_report(client):
    style = ROOT / "retrv_r1" / "report" / "page.css"
    assert client.get("/page/report.css").content == style.read_bytes()


def test_the_page_names_no_other_host_and_makes_no_markup_of_strings():
    for name in FILES:
        if name.endswith((".js", ".css", ".html", ".svg")):
            text = (FOLDER / name).read_text().replace("http://www.w3.org/2000/svg", "")
            assert not re.search(r"https?:|//[a-z]+\.|innerHTML|insertAdjacent|eval\(", text), name


def test_the_example_is_of_the_demo_pictures_and_credits_them():
    pictures = sorted(FOLDER.glob("example/*.png"))
    assert len(pictures) == 12
    for picture in pictures:
        assert picture.read_bytes() == (ROOT / "examples/demo" / picture.name).read_bytes()
    credit = (FOLDER / "example/ATTRIBUTION.md").read_text()
    assert (
        credit.split("(source:")[1].split("A file's name")[0].split()
        == ((ROOT / "examples/demo/ATTRIBUTION.md").read_text())
        .split("(source:")[1]
        .split("A file's name")[0]
        .split()
    )
