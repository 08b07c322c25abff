"""Which names a server answers to: none that a page of the web has given to its address."""

from __future__ import annotations

import pytest
from serve_app import double

from retrv_r1.serve.errors import ApiError
from retrv_r1.serve.hosts import Hosts
from retrv_r1.serve.settings import Settings
from retrv_r1.types import RetrvError

HERE = ["127.0.0.1", "::1"]


def answers(hosts: Hosts, name: str | None) -> bool:
    try:
        hosts.check(name)
    except ApiError as error:
        assert (error.status, error.code) == (421, "unknown_host")
        assert not name or name not in error.message, "messages repeat nothing"
        return False
    return True


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        *((name, True) for name in ("localhost", "localhost:8000", "LOCALHOST.", "127.0.0.1:80")),
        *((name, True) for name in ("[::1]", "[::1]:8000", "127.9.9.9", "my-machine:1", None)),
        *(
            (name, False)
            for name in ("evil.example", "evil.example:8000", "localhost.evil.example")
        ),
        *((name, False) for name in ("127.0.0.1.evil.example", "10.0.0.1", "", ":80", "[", "[]")),
    ],
)
def test_a_server_without_keys_on_this_machine_answers_to_its_own_names(name, expected):
    hosts = Hosts.of([], "My-Machine", HERE, keys=False)
    assert answers(hosts, name) is expected


@pytest.mark.parametrize("bound", [["0.0.0.0"], ["::"], ["127.0.0.1", "10.0.0.1"]])
def test_a_server_with_keys_or_on_another_address_answers_to_all_names(bound):
    for hosts in (Hosts.of([], "any", bound, keys=False), Hosts.of([], "any", HERE, keys=True)):
        assert answers(hosts, "rank.example.org") and answers(hosts, "")


def test_names_that_are_allowed_are_all_that_are():
    for bound, keys in ((HERE, False), (["0.0.0.0"], True)):
        hosts = Hosts.of(["Rank.Example.org", "10.0.0.1:80"], "0.0.0.0", bound, keys=keys)
        for name in ("rank.example.org:443", "10.0.0.1", "localhost"):
            assert answers(hosts, name)
        assert not answers(hosts, "evil.example")
    for name in ("my_machine", "::1", "[::1]:80", "rank.example.org.", "xn--bcher-kva.example"):
        assert answers(Hosts.of([name], "any", HERE, keys=False), name)


NO_NAMES = ("", "http://rank.example.org", "*/", ":80", "*", "*.example.org", ".example.org")


@pytest.mark.parametrize("name", [*NO_NAMES, "a b", "a..b", "-a", "me@example.org", "[a]"])
def test_what_is_no_name_is_told_at_the_start(name):
    with pytest.raises(RetrvError, match="--allowed-host takes a whole name"):
        Hosts.of([name], "localhost", HERE, keys=False)


def test_no_route_answers_to_another_name():
    settings = Settings(hosts=Hosts.of([], "127.0.0.1", HERE, keys=False))
    with double(settings) as server:
        for path in ("/", "/health", "/info", "/page/page.js"):
            answer = server.get(path, headers={"Host": "evil.example"})
            assert (answer.status_code, answer.json()["error"]["code"]) == (421, "unknown_host")
            assert server.get(path, headers={"Host": "localhost:8000"}).status_code != 421
        ask = {"query": "a", "documents": ["b"]}
        assert server.post("/v1/rerank", ask, Host="evil.example").status_code == 421
        assert server.post("/v1/rerank", ask, Host="localhost").status_code == 200
