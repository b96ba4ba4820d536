"""A Ray that is started here listens to this machine alone."""

import ipaddress

import psutil

from tune.cluster import ray_session


def test_ray_listens_on_loopback_alone() -> None:
    with ray_session(address="local", cpus=1):
        processes = psutil.Process().children(recursive=True)
        assert {"raylet", "gcs_server"} <= {process.name() for process in processes}
        listening = [
            (process.name(), connection.laddr)
            for process in (psutil.Process(), *processes)
            for connection in process.net_connections(kind="inet")
            if connection.status == psutil.CONN_LISTEN
        ]
    assert len(listening) >= 4
    outside = [(name, at) for name, at in listening if not _is_loopback(at.ip)]
    assert outside == []


def _is_loopback(address: str) -> bool:
    found = ipaddress.ip_address(address)
    return (getattr(found, "ipv4_mapped", None) or found).is_loopback
