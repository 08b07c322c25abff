"""Remote pictures: what is fetched, and that nothing else can be reached."""

from __future__ import annotations

import asyncio
import gzip
import shutil
import ssl
import subprocess

import pytest
from small_internet import ALSO_PUBLIC, PUBLIC, Answer, Internet, internet, reply

from retrv_r1.serve.fetching import Fetcher, FetchPolicy
from retrv_r1.serve.refused import PictureRefused


async def fetch(net: Internet, url: str = "http://pictures.example/a.png", **policy) -> bytes:
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)  # certificates take long to load
    fetcher = Fetcher(FetchPolicy(**{"seconds": 5.0} | policy), net.resolve, net, tls)
    try:
        return await fetcher.fetch(url)
    finally:
        await fetcher.aclose()


def refusal(answer: Answer, url: str = "http://pictures.example/", names=None, **policy):
    """How a fetch is refused, and which addresses were connected to."""

    async def run() -> tuple[PictureRefused, list]:
        async with internet(answer, **(names or {})) as (net, _):
            with pytest.raises(PictureRefused) as refused:
                await fetch(net, url, **policy)
            return refused.value, net.connected

    return asyncio.run(run())


NOT_PUBLIC = [
    "127.0.0.1",
    "10.1.2.3",
    "169.254.169.254",
    "::1",
    "::ffff:10.0.0.1",
    "64:ff9b::7f00:1",
]


@pytest.mark.parametrize("address", NOT_PUBLIC)
def test_an_address_that_is_not_public_is_never_connected_to(address):
    refused, connected = refusal(reply("200 OK", b"x"), names={"a": [address]}, url="http://a/")
    assert (refused.status, refused.code) == (400, "picture_address")
    assert connected == []
    assert address not in refused.message


def test_a_picture_is_fetched_from_the_address_that_was_checked():
    async def run() -> None:
        async with internet(reply("200 OK", b"bytes", Content_Type="text/html")) as (net, requests):
            assert await fetch(net, "http://Pictures.Example/a%20b.png?size=1#part") == b"bytes"
            assert net.looked_up == ["pictures.example"]
            assert net.connected == [(PUBLIC, 80)]
            lines = requests[0].split(b"\r\n")
            assert lines[0] == b"GET /a%20b.png?size=1 HTTP/1.1"
            assert b"Host: pictures.example" in lines
            names = {line.split(b":")[0].lower() for line in lines[1:] if line}
            assert names == {b"host", b"user-agent", b"accept", b"accept-encoding"}

    asyncio.run(run())


def test_one_address_of_several_that_is_not_public_forbids_the_host():
    names = {"a": [PUBLIC, "10.0.0.1"]}
    refused, connected = refusal(reply("200 OK", b"x"), "http://a/", names)
    assert refused.code == "picture_address" and connected == []


def test_a_second_answer_of_the_name_server_is_never_asked_for():
    """DNS rebinding: the first answer is public, the next one is loopback."""

    async def run() -> None:
        async with internet(reply("200 OK", b"x"), a=[PUBLIC]) as (net, _):
            answers = iter([[PUBLIC], ["127.0.0.1"]])

            async def resolve(host: str, port: int) -> list[str]:
                return next(answers)

            fetcher = Fetcher(FetchPolicy(), resolve, net)
            assert await fetcher.fetch("http://a/") == b"x"
            assert net.connected == [(PUBLIC, 80)]
            await fetcher.aclose()
            fetcher = Fetcher(FetchPolicy(), resolve, net)
            with pytest.raises(PictureRefused, match="no public"):
                await fetcher.fetch("http://a/")
            assert net.connected == [(PUBLIC, 80)]
            await fetcher.aclose()

    asyncio.run(run())


def test_the_next_address_is_tried_where_one_cannot_be_reached():
    async def run() -> None:
        async with internet(reply("200 OK", b"x"), a=[ALSO_PUBLIC, PUBLIC]) as (net, _):
            net.unreachable.add(ALSO_PUBLIC)
            assert await fetch(net, "http://a/") == b"x"

    asyncio.run(run())


def test_the_systems_resolver_finds_loopback_and_it_is_refused():
    async def run() -> None:
        fetcher = Fetcher(FetchPolicy())
        for url in ("http://localhost/", "http://127.0.0.1/", "http://[::1]/"):
            with pytest.raises(PictureRefused) as refused:
                await fetcher.fetch(url)
            assert refused.value.code == "picture_address"
        await fetcher.aclose()

    asyncio.run(run())


@pytest.mark.parametrize(
    "url",
    [
        *("http://user@pictures.example/", "http://user:word@pictures.example/", "http:///a"),
        *("http://pictures.example:22/", "http://pictures.example:8080/", "ftp://a.example/"),
        *("http://2130706433/", "http://0x7f000001/", "http://0177.0.0.1/", "http://127.1/"),
        *("http://1.1.1.0x1/", "http://[::1", "http://a b/", "http://pictures.example:99999/"),
        *("http://127.0.0.1%2f@pictures.example/", "http://\x00/", "http:pictures.example"),
        *("http://[fe80::1%25eth0]/", "http://pictures.example\\@inside/", "http://a\r\nb/"),
    ],
)
def test_other_urls_are_refused_before_any_connection(url):
    refused, connected = refusal(reply("200 OK", b"x"), url)
    assert (refused.status, refused.code, connected) == (400, "picture_address", [])
    assert "pictures.example" not in refused.message


def test_redirects_are_followed_up_to_a_limit():
    def hops(count: int) -> Answer:
        async def answer(request: bytes, writer: asyncio.StreamWriter) -> None:
            here = int(request.split()[1].strip(b"/") or b"0")
            last = here == count
            then = reply("200 OK", b"x") if last else reply("302 Found", Location=f"/{here + 1}")
            await then(request, writer)

        return answer

    async def run() -> None:
        async with internet(hops(3)) as (net, _):
            assert await fetch(net, "http://pictures.example/", max_redirects=3) == b"x"
        async with internet(hops(4)) as (net, requests):
            with pytest.raises(PictureRefused, match="3 redirects"):
                await fetch(net, "http://pictures.example/", max_redirects=3)
            assert len(requests) == 4

    asyncio.run(run())


@pytest.mark.parametrize(
    "location",
    [
        *("http://inside/", "http://127.0.0.1/", "//inside/", "http://[::ffff:127.0.0.1]/"),
        *("file:///etc/passwd", "ftp://pictures.example/", "http://pictures.example:22/"),
        *(
            "http://user@pictures.example/",
            "data:image/png;base64,AA==",
            "http://[",
            "https://a:8443/",
        ),
    ],
)
def test_every_redirect_is_checked_again(location):
    names = {"pictures__example": [PUBLIC], "inside": ["10.0.0.1"]}
    names |= {"127__0__0__1": ["127.0.0.1"], "::ffff:127__0__0__1": ["::ffff:127.0.0.1"]}
    names |= {"::ffff:7f00:1": ["::ffff:127.0.0.1"]}
    answer = reply("302 Found", Location=location)
    refused, connected = refusal(answer, names=names)
    assert refused.code == "picture_address"
    assert connected == [(PUBLIC, 80)]


@pytest.mark.parametrize("honest", [True, False])
def test_reading_ends_at_the_limit_of_bytes(honest):
    sent = 0

    async def endless(request: bytes, writer: asyncio.StreamWriter) -> None:
        nonlocal sent
        writer.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
        for _ in range(10_000):
            writer.write(b"400\r\n" + b"x" * 1024 + b"\r\n")
            sent += 1024
            await writer.drain()

    answer = reply("200 OK", b"x" * 20_000) if honest else endless
    refused, _ = refusal(answer, max_bytes=10_000)
    assert (refused.status, refused.code) == (413, "max_picture_bytes")
    assert sent < 10_000 * 1024


def test_a_compressed_answer_is_not_unpacked():
    """So that a few bytes cannot become gigabytes."""
    body = gzip.compress(b"x" * 100_000)

    async def run() -> None:
        async with internet(reply("200 OK", body, Content_Encoding="gzip")) as (net, _):
            assert await fetch(net) == body

    asyncio.run(run())


@pytest.mark.parametrize("where", ["lookup", "connect", "headers", "body"])
def test_a_server_that_hangs_or_trickles_is_left_after_the_time_limit(where):
    async def trickle(request: bytes, writer: asyncio.StreamWriter) -> None:
        if where == "body":
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n")
        for _ in range(1000):
            writer.write(b"x" if where == "body" else b"HTTP/1.1 200 OK\r\n"[:1])
            await writer.drain()
            await asyncio.sleep(0.05)

    async def hang(*args, **kwargs):
        await asyncio.sleep(60)

    async def run() -> None:
        async with internet(trickle) as (net, _):
            if where == "lookup":
                net.resolve = hang
            if where == "connect":
                net.connect_tcp = hang
            start = asyncio.get_running_loop().time()
            with pytest.raises(PictureRefused) as refused:
                await fetch(net, seconds=0.3)
            assert refused.value.code == "picture_unreachable"
            assert asyncio.get_running_loop().time() - start < 2

    asyncio.run(run())


@pytest.mark.parametrize(
    "answer",
    [
        *(reply("404 Not Found", b"x"), reply("500 Oops"), reply("206 Partial", b"x")),
        *(reply("304 Not Modified"), reply("302 Found")),
    ],
)
def test_other_answers_are_no_pictures(answer):
    refused, _ = refusal(answer)
    assert (refused.status, refused.code) == (400, "picture_unreachable")


@pytest.mark.parametrize(
    "raw", [b"", b"\x00" * 100, b"SSH-2.0-x\r\n", b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nx"]
)
def test_a_server_that_does_not_speak_http_is_unreachable(raw):
    async def answer(request: bytes, writer: asyncio.StreamWriter) -> None:
        writer.write(raw)
        writer.close()

    refused, _ = refusal(answer)
    assert refused.code == "picture_unreachable"


def test_a_host_that_does_not_exist_is_unreachable():
    refused, connected = refusal(reply("200 OK"), "http://nowhere.example/")
    assert refused.code == "picture_unreachable" and connected == []


@pytest.mark.parametrize("host", ["a..b", "a" * 64 + ".example", "."])
def test_a_host_that_no_resolver_takes_is_unreachable(host):
    async def run() -> None:
        fetcher = Fetcher(FetchPolicy(), tls=ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT))
        with pytest.raises(PictureRefused, match="no connection"):
            await fetcher.fetch(f"http://{host}/a.png")
        await fetcher.aclose()

    asyncio.run(run())


def test_proxies_of_the_environment_are_not_used(monkeypatch):
    for name in ("http_proxy", "HTTP_PROXY", "ALL_PROXY", "https_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")

    async def run() -> None:
        async with internet(reply("200 OK", b"x")) as (net, _):
            assert await fetch(net) == b"x"
            assert net.connected == [(PUBLIC, 80)]

    asyncio.run(run())


@pytest.mark.skipif(shutil.which("openssl") is None, reason="no openssl to make a certificate")
@pytest.mark.parametrize("name", ["pictures.example", "other.example"])
def test_the_certificate_must_be_the_hosts_although_the_connection_goes_to_an_address(
    name, tmp_path
):
    key, certificate = tmp_path / "key.pem", tmp_path / "certificate.pem"
    subprocess.run(
        [
            *("openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256"),
            *("-nodes", "-keyout", key, "-out", certificate, "-days", "1", "-subj", "/CN=a"),
            *("-addext", f"subjectAltName=DNS:{name}"),
        ],
        check=True,
        capture_output=True,
    )
    asked: list[str | None] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        await reply("200 OK", b"x")(b"", writer)
        writer.close()

    async def run() -> bytes:
        server_side = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        server_side.load_cert_chain(certificate, key)
        server_side.sni_callback = lambda _, asked_name, __: asked.append(asked_name)
        server = await asyncio.start_server(serve, "127.0.0.1", 0, ssl=server_side)
        net = Internet(server.sockets[0].getsockname()[1], {"pictures.example": [PUBLIC]})
        client_side = ssl.create_default_context(cafile=certificate)
        fetcher = Fetcher(FetchPolicy(), net.resolve, net, client_side)
        try:
            return await fetcher.fetch("https://pictures.example/")
        finally:
            await fetcher.aclose()
            server.close()

    if name == "pictures.example":
        assert asyncio.run(run()) == b"x"
    else:
        with pytest.raises(PictureRefused) as refused:
            asyncio.run(run())
        assert refused.value.code == "picture_unreachable"
    assert asked == ["pictures.example"]
