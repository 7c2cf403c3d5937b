"""A small HTTP server on a thread of its own: it answers when the event loop cannot."""

from __future__ import annotations

import logging
import socket
import threading
from collections.abc import Callable, Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Final, NamedTuple

from tidings.errors import ConfigurationError

log = logging.getLogger("tidings.server")

MOST_REQUESTS: Final = 16
"""Requests answered at a time; more are turned away, so that no stranger can make threads without end."""
REQUEST_TIMEOUT: Final = 5.0


class Answer(NamedTuple):
    """What a page says."""

    status: int
    content_type: str
    body: bytes


Pages = Mapping[str, Callable[[], Answer]]


class Server:
    """Serves pages by their exact paths, to GET and HEAD alone. Functions of pages run on its threads.

    `host` is loopback unless told otherwise: what is shown is not for strangers. `port` 0 takes any that is free.
    """

    def __init__(self, pages: Pages, *, host: str = "127.0.0.1", port: int = 0) -> None:
        self._pages, self._host, self._port = pages, host, port
        self._server: _Server | None = None
        self._thread: threading.Thread | None = None

    @property
    def url(self) -> str:
        """``http://127.0.0.1:9464``, with the port that it has got."""
        host = f"[{self._host}]" if ":" in self._host else self._host
        port = self._server.server_address[1] if self._server is not None else self._port
        return f"http://{host}:{port}"

    def start(self) -> None:
        """Listen, and answer from now on.

        Raises:
            ConfigurationError: the port is taken, or host and port cannot be used.
        """
        try:
            self._server = _Server(self._host, self._port, self._pages)
        except (OSError, OverflowError) as error:
            where = f"port {self._port} of {self._host}"
            if getattr(error, "errno", None) == 98 or "in use" in str(error):
                raise ConfigurationError(
                    f"{where}, for metrics and health, is in use by another process. Name another: --port"
                    f" {self._port + 1}, or --port 0 for any that is free"
                ) from None
            raise ConfigurationError(f"nothing can listen on {where}: {getattr(error, 'strerror', error)}") from None
        self._thread = threading.Thread(
            target=self._server.serve_forever, kwargs={"poll_interval": 0.1}, name="tidings http", daemon=True
        )
        self._thread.start()

    def stop(self) -> None:
        if self._server is not None and self._thread is not None:
            self._server.shutdown()
            self._thread.join(timeout=5)
            self._server.server_close()


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False
    request_queue_size = 64

    def __init__(self, host: str, port: int, pages: Pages) -> None:
        self.pages = pages
        self._room = threading.BoundedSemaphore(MOST_REQUESTS)
        self.address_family = socket.AF_INET6 if ":" in host else socket.AF_INET
        super().__init__((host, port), _Handler)

    def server_bind(self) -> None:
        """Without the look-up of the host's name, which may take seconds."""
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self.socket.bind(self.server_address)
        self.server_address = self.socket.getsockname()
        self.server_name, self.server_port = str(self.server_address[0]), self.server_address[1]

    def process_request(self, request: Any, client_address: Any) -> None:
        if self._room.acquire(blocking=False):
            super().process_request(request, client_address)
        else:
            self.shutdown_request(request)

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        try:
            super().process_request_thread(request, client_address)
        finally:
            self._room.release()

    def handle_error(self, request: Any, client_address: Any) -> None:
        log.debug("a request was not answered to its end", exc_info=True)


class _Handler(BaseHTTPRequestHandler):
    server: _Server
    timeout = REQUEST_TIMEOUT
    server_version, sys_version = "tidings", ""

    def do_GET(self) -> None:
        answer = self._answer()
        self.send_response(answer.status)
        self.send_header("content-type", answer.content_type)
        self.send_header("content-length", str(len(answer.body)))
        self.send_header("cache-control", "no-store")
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(answer.body)

    do_HEAD = do_GET

    def _answer(self) -> Answer:
        page = self.server.pages.get(self.path.partition("?")[0])
        if page is None:
            listed = "".join(f"{path}\n" for path in self.server.pages)
            return Answer(404, "text/plain; charset=utf-8", f"Not found. There are:\n{listed}".encode())
        try:
            return page()
        except Exception:
            log.exception("the page %s failed", self.path.partition("?")[0][:100])
            return Answer(500, "text/plain; charset=utf-8", b"This page failed; the log says why.\n")

    def log_message(self, format: str, *args: Any) -> None:
        """Probes come all day: nobody wants a line for each."""
