"""An explorer over http, for this machine alone: its files, and nothing else that is on the disk."""

from __future__ import annotations

import errno
import hashlib
import os
import re
import socketserver
import sys
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from infoscope.runtime.errors import InputError

HOST = "127.0.0.1"
NAMES = ("127.0.0.1", "localhost")
"""By which a browser may ask for it; any other is that of a site which has its name point here (DNS rebinding)."""
TYPES = {
    ".html": "text/html; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".csv": "text/csv; charset=utf-8",
    ".txt": "text/plain; charset=utf-8",
}
"""What is sent: of an artifact's folder not its configuration and its manifest, which name places of the machine."""
N_TRIED = 20
"""Ports that are tried, from the one that was asked for."""
IDLE_S = 60
"""After so many seconds without a request a connection is closed."""
_NONCE = re.compile(r'<body data-nonce="([0-9a-f]+)"')


class ExplorerServer(ThreadingHTTPServer):
    """Serves one explorer's folder on 127.0.0.1.

    Args:
        folder: of the explorer.
        port: 0: any that is free.

    Raises:
        OSError: the port is taken, or is not this user's to take.
    """

    daemon_threads = True
    allow_reuse_address = os.name != "nt"  # there it would share a port that another program listens on

    def __init__(self, folder: Path, port: int) -> None:
        self.folder = folder.resolve()
        found = _NONCE.search((folder / "index.html").read_text(encoding="utf-8"))
        self.policy = make_policy(found[1] if found else "")
        super().__init__((HOST, port), _Handler)

    def server_bind(self) -> None:
        socketserver.TCPServer.server_bind(self)  # HTTPServer's asks the name service who 127.0.0.1 is
        self.server_name, self.server_port = HOST, self.server_address[1]

    @property
    def address(self) -> str:
        """The address of the page."""
        return f"http://{HOST}:{self.server_port}/"

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Say nothing of a browser that went away."""
        if not isinstance(sys.exception(), ConnectionError | TimeoutError):
            super().handle_error(request, client_address)


def open_server(folder: Path, port: int) -> ExplorerServer:
    """Return a server that listens on a port, or on the next that is free; `serve_forever()` answers.

    Raises:
        InputError: the port is not this user's to take, or all that are tried are taken.
    """
    last = min(port + N_TRIED, 65536) if port else 1
    for tried in range(port, last):
        try:
            return ExplorerServer(folder, tried)
        except OSError as error:
            if error.errno == errno.EACCES:
                raise InputError(
                    f"Port {tried} may not be taken by this user: give one above 1023, or port=0 for any that is free."
                ) from error
            if error.errno != errno.EADDRINUSE:
                raise
    raise InputError(
        f"The ports {port} to {last - 1} are all taken: give another as port=NUMBER, or port=0 for any that is free."
    )


def make_policy(nonce: str) -> str:
    """Return the content security policy: that of the page itself without file:, and no frame around it."""
    styles = f"'self' 'nonce-{nonce}'" if nonce else "'self'"
    return (
        f"default-src 'none'; script-src 'self'; style-src {styles}; img-src 'self' data: blob:; base-uri 'none';"
        " form-action 'none'; frame-ancestors 'none'"
    )


def find_file(folder: Path, address: str) -> Path | None:
    """Return the file of a request; None: there is none, it lies outside of the folder, or it is of no kind we send.

    Args:
        folder: with no links in its own path.
        address: the path of the address, as it was sent.
    """
    path = unquote(urlsplit(address).path, errors="strict")
    parts = path.removeprefix("/").split("/") if path != "/" else ["index.html"]
    is_plain = path.startswith("/") and not any(part == "" or part.startswith(".") for part in parts)
    if not is_plain or any(letter in path for letter in "\\:\0"):
        return None
    file = folder.joinpath(*parts).resolve()
    if file.suffix not in TYPES or not file.is_relative_to(folder) or not file.is_file():
        return None
    return file


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True  # else the body of each answer waits 40 ms for the browser to confirm its head
    timeout = IDLE_S
    server: ExplorerServer  # pyright: ignore[reportIncompatibleVariableOverride]

    def do_GET(self) -> None:
        self._answer()

    def do_HEAD(self) -> None:
        self._answer()

    def _answer(self) -> None:
        if re.sub(r":\d+$", "", self.headers.get("Host") or "") not in NAMES:
            self.send_error(HTTPStatus.FORBIDDEN, "this explorer is for 127.0.0.1 alone")
            return
        try:
            file = find_file(self.server.folder, self.path)
            handle = None if file is None else file.open("rb")
        except (OSError, ValueError, RuntimeError):  # a name that is no text or too long, a link to itself
            file = handle = None
        if file is None or handle is None:
            self.send_error(HTTPStatus.NOT_FOUND)
            return
        with handle:
            of = os.fstat(handle.fileno())
            tag = hashlib.sha256(f"{file} {of.st_mtime_ns} {of.st_size}".encode()).hexdigest()[:24]
            is_known = self.headers.get("If-None-Match") == f'"{tag}"'
            self.send_response(HTTPStatus.NOT_MODIFIED if is_known else HTTPStatus.OK)
            self.send_header("Content-Type", TYPES[file.suffix])
            self.send_header("ETag", f'"{tag}"')
            # kept, but asked for again each time: another explorer may be served at the same address tomorrow
            self.send_header("Cache-Control", "no-cache")
            if not is_known:
                self.send_header("Content-Length", str(of.st_size))
            self.end_headers()
            if self.command == "GET" and not is_known:
                self.copy(handle, of.st_size)

    def copy(self, handle: Any, n_bytes: int) -> None:
        """Send as many bytes as were announced."""
        while n_bytes > 0 and (part := handle.read(min(n_bytes, 1 << 20))):
            self.wfile.write(part)
            n_bytes -= len(part)
        self.close_connection = self.close_connection or n_bytes > 0

    def end_headers(self) -> None:
        self.send_header("Content-Security-Policy", self.server.policy)
        self.send_header("X-Content-Type-Options", "nosniff")
        self.send_header("Referrer-Policy", "no-referrer")
        self.send_header("Cross-Origin-Opener-Policy", "same-origin")
        # the data are scripts, which any site could else load and listen to
        self.send_header("Cross-Origin-Resource-Policy", "same-origin")
        super().end_headers()

    def version_string(self) -> str:
        return "infoscope"

    def log_message(self, format: str, *args: Any) -> None:
        """Say nothing of single requests."""
