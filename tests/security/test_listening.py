"""A Ray that is started here listens to this machine alone."""

import ipaddress
from contextlib import suppress

import psutil

from tune.cluster import ray_session


def test_ray_listens_on_loopback_alone() -> None:
    with ray_session(address="local", cpus=1):
        listening = []
        for process in (psutil.Process(), *psutil.Process().children(recursive=True)):
            with suppress(psutil.NoSuchProcess):  # which Ray needed for its start alone
                listening += [
                    (process.name(), connection.laddr)
                    for connection in process.net_connections(kind="inet")
                    if connection.status == psutil.CONN_LISTEN
                ]
    assert {"raylet", "gcs_server"} <= {name for name, _ in listening}
    assert len(listening) >= 4
    outside = [(name, at) for name, at in listening if not _is_loopback(at.ip)]
    assert outside == []


def _is_loopback(address: str) -> bool:
    found = ipaddress.ip_address(address)
    return (getattr(found, "ipv4_mapped", None) or found).is_loopback
