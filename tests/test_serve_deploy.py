"""What docs/deploy holds fits the server: the commands in its files are parsed by the command line
itself. ``make lint`` has hadolint read the container file; here is what that does not know."""

from __future__ import annotations

import configparser
import json
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import typer

from retrv_r1.command.cli import app
from retrv_r1.serve.limits import MEBI, Limits
from retrv_r1.serve.running import KEEP_ALIVE

ROOT = Path(__file__).parent.parent
DEPLOY = ROOT / "docs" / "deploy"
INSTRUCTIONS = {
    *("ARG", "CMD", "COPY", "ENTRYPOINT", "ENV", "EXPOSE", "FROM", "HEALTHCHECK", "RUN"),
    *("STOPSIGNAL", "USER", "WORKDIR"),
}


def instructions() -> list[tuple[str, str]]:
    text = (DEPLOY / "Containerfile").read_text()
    lines = [line for line in text.splitlines() if not line.startswith("#")]
    joined = "\n".join(lines).replace("\\\n", " ")
    parts = [line.split(maxsplit=1) for line in joined.splitlines() if line.strip()]
    return [(name, " ".join(rest.split())) for name, rest in parts]


def options_of(words: list[str]) -> dict[str, Any]:
    """What the command line reads of a ``retrv-r1 serve`` command."""
    assert Path(words[0]).name == "retrv-r1" and words[1] == "serve"
    command: Any = typer.main.get_command(app)
    return command.commands["serve"].make_context("serve", words[2:]).params


def test_the_container_file_has_known_instructions_in_a_sound_order():
    found = instructions()
    assert {name for name, _ in found} <= INSTRUCTIONS
    stages = [rest for name, rest in found if name == "FROM"]
    assert len(stages) == 2
    for stage in stages:
        image, _, tag = stage.split()[0].partition(":")
        assert image and re.fullmatch(r"[\w.-]+", tag) and tag != "latest"
    last = found[max(i for i, (name, _) in enumerate(found) if name == "FROM") :]
    names = [name for name, _ in last]
    assert names.index("USER") < names.index("ENTRYPOINT")
    assert dict(last)["USER"] not in ("root", "0")
    for name, rest in found:
        if name == "RUN":
            assert rest.count("apt-get update") == rest.count("rm -rf /var/lib/apt/lists/*")
            assert "sudo" not in rest and "curl" not in rest


def test_the_container_file_copies_what_is_there():
    for name, rest in instructions():
        if name == "COPY" and not rest.startswith("--from"):
            assert all((ROOT / source).exists() for source in rest.split()[:-1]), rest


def test_the_container_starts_a_server_that_its_check_asks():
    found = dict(instructions())
    options = options_of(json.loads(found["ENTRYPOINT"]) + json.loads(found["CMD"]))
    assert (options["host"], options["port"]) == ("0.0.0.0", int(found["EXPOSE"]))
    check = json.loads(found["HEALTHCHECK"].partition("CMD ")[2])
    assert check[:2] == ["python", "-c"]
    compile(check[2], "check", "exec")
    assert f":{found['EXPOSE']}/health" in check[2]


def test_the_unit_starts_the_server_and_waits_for_its_end():
    unit = configparser.ConfigParser(delimiters="=", interpolation=None)
    unit.optionxform = str
    unit.read_string((DEPLOY / "retrv-r1.service").read_text())
    service = unit["Service"]
    options = options_of(shlex.split(service["ExecStart"]))
    assert options["host"] == "127.0.0.1"
    assert str(options["api_key_file"]) == "${CREDENTIALS_DIRECTORY}/api-keys"
    assert int(service["TimeoutStopSec"]) > options["drain"]
    assert service["DynamicUser"] == service["NoNewPrivileges"] == "yes"


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="there is no systemd")
def test_systemd_takes_the_unit(tmp_path):
    unit = (DEPLOY / "retrv-r1.service").read_text()
    program = shlex.split(unit.partition("ExecStart=")[2])[0]
    copy = tmp_path / "retrv-r1.service"
    copy.write_text(unit.replace(program, sys.executable))
    command = ["systemd-analyze", "verify", "--man=no", str(copy)]
    done = subprocess.run(command, capture_output=True, text=True)
    own = [line for line in done.stderr.splitlines() if "retrv-r1" in line]
    assert own == [], done.stderr


def test_the_proxy_passes_events_on_and_takes_bodies_of_the_servers_size():
    text = (DEPLOY / "nginx.conf").read_text()
    text = "\n".join(line.partition("#")[0] for line in text.splitlines())
    assert text.count("{") == text.count("}")
    for line in filter(None, map(str.strip, text.splitlines())):
        assert line[-1] in "{};", line
    values = dict(re.findall(r"^\s*(\w+) ([^;{]+);", text, re.MULTILINE))
    assert values["proxy_buffering"] == values["proxy_ignore_client_abort"] == "off"
    assert values["client_max_body_size"] == f"{Limits().max_body_bytes // MEBI}m"
    assert int(values["keepalive_timeout"].rstrip("s")) < KEEP_ALIVE
    assert int(values["proxy_read_timeout"].rstrip("s")) > 60
