"""Ends this worker soon after another one has ended without a word, whatever it waits in.

A worker that waits for one that is gone learns it from a broken connection in a collective, but not where it waits in
the key-value store, as before a checkpoint. So each worker keeps a connection to worker 0 on which nothing is sent but
a farewell. If it breaks before that, the worker at its other end has ended: worker 0 ends, and then all others.
"""

from __future__ import annotations

import os
import secrets
import selectors
import socket
import sys
import threading
import time
from contextlib import suppress

from torch._C._distributed_c10d import Store

from sdp_compile.errors import DistributedError

LOST = 76
"""The exit code of a worker that ended because another one had ended: EX_PROTOCOL, "remote error in protocol"."""

_GRACE = 3.0
"""Seconds for the main thread to fail by itself, with an error that says in what."""

_CONNECT_SECONDS = 60.0
_FAREWELL = b"."
_TOKEN_BYTES = 16


class Watch:
    """This worker's connections; a thread looks after them.

    Args:
        store: The workers' store.
        rank: This worker.
        workers: The number of workers.
        host: The host of worker 0, as the others reach it.

    Raises:
        DistributedError: If worker 0 cannot be reached.
    """

    def __init__(self, store: Store, rank: int, workers: int, host: str) -> None:
        self._rank, self._workers, self._is_over = rank, workers, threading.Event()
        self._connections: dict[socket.socket, int] = {}
        self._token = b""
        if workers == 1:
            return
        if rank == 0:
            self._token = secrets.token_hex(_TOKEN_BYTES // 2).encode()
            self._server = _listener(host)
            store.set("sdp_compile/watch", f"{self._server.getsockname()[1]} {self._token.decode()}")
        else:
            port, _, token = store.get("sdp_compile/watch").decode().partition(" ")
            self._connections[_connected(host, int(port), f"{token} {rank}\n".encode())] = 0
        target = self._accept_and_look if rank == 0 else self._look
        threading.Thread(target=target, name="sdp_compile watch", daemon=True).start()

    def close(self) -> None:
        """Says farewell: this worker ends, and all is well."""
        self._is_over.set()
        for connection in list(self._connections):
            with suppress(OSError):  # the other one has ended, too
                connection.sendall(_FAREWELL)
            # Not closed: what is closed with unread bytes breaks the connection before the farewell is read.

    def _accept_and_look(self) -> None:
        with selectors.DefaultSelector() as selector:
            selector.register(self._server, selectors.EVENT_READ)
            greetings: dict[socket.socket, bytes] = {}
            while not self._is_over.is_set():
                for key, _ in selector.select(1.0):
                    assert isinstance(key.fileobj, socket.socket)
                    one = key.fileobj
                    if one is self._server:
                        connection, _ = self._server.accept()
                        _keep_alive(connection)
                        greetings[connection] = b""
                        selector.register(connection, selectors.EVENT_READ)
                    elif one in greetings:
                        self._greet(one, greetings, selector)
                    elif self._has_ended(one):
                        selector.unregister(one)

    def _greet(
        self, one: socket.socket, greetings: dict[socket.socket, bytes], selector: selectors.BaseSelector
    ) -> None:
        """Reads who is at the other end of a new connection; drops strangers."""
        received = _received(one)
        text = greetings[one] + received
        if received and len(text) < 2 * _TOKEN_BYTES and not text.endswith(b"\n"):
            greetings[one] = text
            return
        del greetings[one]
        token, _, rank = text.partition(b" ")
        if secrets.compare_digest(token, self._token) and rank.strip().isdigit():
            self._connections[one] = int(rank)
        else:
            selector.unregister(one)
            one.close()

    def _look(self) -> None:
        (connection,) = self._connections
        self._has_ended(connection)

    def _has_ended(self, connection: socket.socket) -> bool:
        """Waits for the end of the worker at the other end; does not return if that is without a farewell."""
        if _received(connection) or self._is_over.is_set():
            return True
        other = self._connections[connection]
        time.sleep(_GRACE)
        if not self._is_over.is_set():
            sys.stderr.write(f"[worker {self._rank}] Ends, because worker {other} has ended without a word.\n")
            sys.stderr.flush()
            os._exit(LOST)
        return True


def _received(connection: socket.socket) -> bytes:
    """Returns what has arrived; nothing if the other end is gone."""
    try:
        return connection.recv(64)
    except OSError:
        return b""


def _listener(host: str) -> socket.socket:
    if host == "127.0.0.1":
        return socket.create_server((host, 0), backlog=1024)
    with suppress(OSError, ValueError):  # a machine without IPv6
        return socket.create_server(("", 0), family=socket.AF_INET6, backlog=1024, dualstack_ipv6=True)
    return socket.create_server(("", 0), backlog=1024)


def _connected(host: str, port: int, greeting: bytes) -> socket.socket:
    try:
        connection = socket.create_connection((host, port), timeout=_CONNECT_SECONDS)
        connection.settimeout(None)
        _keep_alive(connection)
        connection.sendall(greeting)
    except OSError as error:
        raise DistributedError(
            f"Worker 0 cannot be reached at {host}:{port} ({error}). Allow the workers connections on all ports."
        ) from error
    return connection


def _keep_alive(connection: socket.socket) -> None:
    """A machine that is switched off says nothing: after half a minute without an answer the connection breaks."""
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, value in (("TCP_KEEPIDLE", 10), ("TCP_KEEPINTVL", 5), ("TCP_KEEPCNT", 4)):
        if hasattr(socket, name):
            connection.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)
