"""Clients that wait for a server for ten minutes, each in its own way, and servers that do not end their answer."""

from __future__ import annotations

import http.client
import socket
import ssl
import threading
import urllib.request
from contextlib import closing, suppress
from urllib.parse import urlsplit

import httpx
import pymysql
import requests
import urllib3

from tests.support.http import read_request

FOREVER = 600.0  # seconds


def address(url: str) -> tuple[str, int]:
    parts = urlsplit(url)
    return parts.hostname or "", parts.port or 0


def receive(url: str) -> None:
    with socket.create_connection(address(url)) as connection:
        connection.recv(100)


def receive_with_a_timeout(url: str) -> None:
    with socket.create_connection(address(url), timeout=FOREVER) as connection:
        connection.recv(100)


def http_client(url: str) -> None:
    with closing(http.client.HTTPConnection(*address(url), timeout=FOREVER)) as connection:
        connection.request("GET", "/")
        connection.getresponse().read()


def urllib_request(url: str) -> None:
    urllib.request.urlopen(url, timeout=FOREVER, context=unchecked()).read()


def urllib3_pool(url: str) -> None:
    urllib3.PoolManager(cert_reqs="CERT_NONE").request("GET", url, timeout=FOREVER)


def requests_session(url: str) -> None:
    with requests.Session() as session:
        session.get(url, timeout=FOREVER, verify=False)


def httpx_client(url: str) -> None:
    with httpx.Client(verify=False, timeout=FOREVER) as client:
        client.get(url)


def mysql(url: str) -> None:
    host, port = address(url)
    pymysql.connect(host=host, port=port, read_timeout=int(FOREVER), connect_timeout=int(FOREVER))


def catch_and_retry(url: str) -> None:
    for _ in range(5):
        with suppress(OSError):
            receive_with_a_timeout(url)


def unchecked() -> ssl.SSLContext:
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    return context


def half_a_body(connection: socket.socket, over: threading.Event) -> None:
    read_request(connection)
    connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n[1, 2, 3")
    over.wait()


def body_without_a_length(connection: socket.socket, over: threading.Event) -> None:
    read_request(connection)
    connection.sendall(b'HTTP/1.0 200 OK\r\nContent-Type: application/json\r\n\r\n["AAPL"]')
    over.wait()


def dripping_body(connection: socket.socket, over: threading.Event) -> None:
    read_request(connection)
    connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 1000000\r\n\r\n")
    while not over.wait(0.02):
        connection.sendall(b" ")
