"""On a private Ray of one machine, the ports between replicas belong on loopback too."""

from __future__ import annotations

from typing import Any

__all__ = ["keep_replica_ports_on_loopback"]

_LOOPBACK = "127.0.0.1"


def keep_replica_ports_on_loopback() -> None:
    """Call in a replica's constructor. Serve opens the replica's gRPC port after it, on all interfaces and unasked; what it
    reads there it unpickles. Where the node itself lives on loopback no other node can need that port."""
    import ray
    from ray.serve._private import replica

    if ray.util.get_node_ip_address() != _LOOPBACK:
        return
    bind = replica.add_port_to_grpc_server

    def on_loopback(server: Any, address: str) -> int:
        port: int = bind(server, f"{_LOOPBACK}:0" if address == "[::]:0" else address)
        return port

    replica.add_port_to_grpc_server = on_loopback
