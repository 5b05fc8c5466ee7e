"""Serve this process's Prometheus metrics on loopback."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from prometheus_client import disable_created_metrics, start_http_server

from resilient_scan.errors import ConfigError


@contextmanager
def metrics_served(port: int) -> Iterator[str]:
    """Serve the default registry on 127.0.0.1 and give the address; the port is free again afterwards.

    Switches `_created` samples off, which prometheus_client can only do for the whole process: for commands, not for
    a library.

    Args:
        port: 0 takes a free one.

    Raises:
        ConfigError: the port cannot be had.
    """
    disable_created_metrics()  # type: ignore[no-untyped-call]  # prometheus_client leaves it without types
    try:
        server, thread = start_http_server(port, addr="127.0.0.1")
    except OSError as error:
        raise ConfigError(f"port {port} of 127.0.0.1 cannot be had: {error.strerror}; 0 takes a free one") from None
    try:
        yield f"http://127.0.0.1:{server.server_port}/metrics"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
