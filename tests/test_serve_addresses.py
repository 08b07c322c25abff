"""Which addresses count as public."""

from __future__ import annotations

import pytest

from retrv_r1.serve.addresses import is_public

NOT_PUBLIC = """
    127.0.0.1 127.255.255.254 0.0.0.0 10.1.2.3 172.16.0.1 172.31.255.255 192.168.1.1 169.254.169.254
    100.64.0.1 100.100.100.200 192.0.0.192 192.0.2.1 192.88.99.1 198.18.0.1 198.51.100.7
    203.0.113.9 224.0.0.1 239.255.255.250 240.0.0.1 255.255.255.255 168.63.129.16
    :: ::1 ::ffff:127.0.0.1 ::ffff:10.0.0.1 ::ffff:a9fe:a9fe ::127.0.0.1 ::7f00:1
    fe80::1 fe80::1%eth0 fec0::1 fc00::1 fd00:ec2::254 ff02::1 2001:db8::1 2001::1 3fff::1
    2002:7f00:1:: 2002:a00:1::1 64:ff9b::7f00:1 64:ff9b::a9fe:a9fe 64:ff9b:1::1 100::1 5f00::1
    2606:4700::1%1
"""
NO_ADDRESS = "localhost 127.1 017700000001 0177.0.0.1 0x7f.1 2130706433 1.2.3 [::1] 1.1.1.1:80"
PUBLIC = """
    93.184.215.14 1.1.1.1 172.32.0.1 100.128.0.1 168.63.129.17
    2606:2800:21f:cb07:6820:80da:af6b:8b2c ::ffff:8.8.8.8 64:ff9b::808:808 2002:808:808::1
"""


@pytest.mark.parametrize("address", [*NOT_PUBLIC.split(), *NO_ADDRESS.split(), "", " 1.1.1.1"])
def test_an_address_that_is_not_public(address):
    assert not is_public(address)


@pytest.mark.parametrize("address", PUBLIC.split())
def test_a_public_address(address):
    assert is_public(address)
