"""A loopback server that keeps repositories as the Hugging Face hub does: as much protocol as one needs of it."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import pytest
from huggingface_hub import constants


class HubServer(ThreadingHTTPServer):
    """Listens on 127.0.0.1 at a free port.

    commits: the files of each commit, by repository and commit; refs: the commit of each branch, by repository.
    private: by repository, whether it was made so. requests: "METHOD path" of each, in order.
    refuses: an HTTP status and what to say to everything.
    """

    daemon_threads = True
    block_on_close = False

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.commits: dict[str, dict[str, dict[str, bytes]]] = {}
        self.refs: dict[str, dict[str, str]] = {}
        self.private: dict[str, bool] = {}
        self.requests: list[str] = []
        self.refuses: tuple[int, dict[str, str]] | None = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def commit(self, repo: str, files: dict[str, bytes], branch: str = "main") -> str:
        """Add files to a branch and return the commit."""
        before = self.commits.get(repo, {}).get(self.refs.get(repo, {}).get(branch, ""), {})
        sha = hashlib.sha1(repr((repo, branch, len(self.commits.get(repo, {})))).encode()).hexdigest()
        self.commits.setdefault(repo, {})[sha] = {**before, **files}
        self.refs.setdefault(repo, {})[branch] = sha
        return sha

    def find(self, repo: str, revision: str) -> str | None:
        """Return the commit of a branch or commit."""
        commits = self.commits.get(repo, {})
        return revision if revision in commits else self.refs.get(repo, {}).get(revision)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Say nothing: clients drop connections that they keep alive."""


@contextmanager
def serve_hub(cache: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[HubServer]:
    """Serve in a thread of this process, and make the hub's client use it and keep its files in `cache`."""
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(cache))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(cache / "no_token"))
    monkeypatch.setenv("HF_TOKEN", "hf_stand_in")
    with HubServer() as server:
        monkeypatch.setattr(constants, "ENDPOINT", server.url)
        template = f"{server.url}/{{repo_id}}/resolve/{{revision}}/{{filename}}"
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()


class _Handler(BaseHTTPRequestHandler):
    server: HubServer
    protocol_version = "HTTP/1.1"

    def log_message(self, format: str, *args: Any) -> None:
        """Print nothing."""

    def do_GET(self) -> None:
        self._answer()

    def do_HEAD(self) -> None:
        self._answer()

    def do_POST(self) -> None:
        self._answer()

    def _answer(self) -> None:
        path = unquote(self.path.partition("?")[0])
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        if path != "/api/agent-harnesses":  # the client's own affair, once a day
            self.server.requests.append(f"{self.command} {path}")
        if self.server.refuses is not None:
            status, headers = self.server.refuses
            return self._send(status, b'{"error": "refused"}', **headers)
        for pattern, method in (
            (r"/api/models/(\w[\w.-]*/[\w.-]+)(?:/revision/(.+))?", self._send_info),
            (r"/(\w[\w.-]*/[\w.-]+)/resolve/([^/]+)/(.+)", self._send_file),
            (r"/api/models/([\w.-]+/[\w.-]+)/preupload/(.+)", self._send_modes),
            (r"/api/models/([\w.-]+/[\w.-]+)/commit/(.+)", self._take_commit),
            (r"/api/repos/create", self._make_repo),
            (r"/api/validate-yaml", lambda _body: self._send_json({"errors": [], "warnings": []})),
        ):
            match = re.fullmatch(pattern, path)
            if match is not None:
                return method(body, *match.groups())
        return self._send(404, b"{}")

    def _find(self, repo: str, revision: str | None) -> str | None:
        """Return the commit; None: it was answered that there is none."""
        sha = self.server.find(repo, revision or "main")
        if sha is None:
            is_known = repo in self.server.refs
            self._send(404, b"{}", **{"X-Error-Code": "RevisionNotFound" if is_known else "RepoNotFound"})
        return sha

    def _send_info(self, _body: bytes, repo: str, revision: str | None) -> None:
        sha = self._find(repo, revision)
        if sha is not None:
            siblings = [{"rfilename": name} for name in self.server.commits[repo][sha]]
            self._send_json(
                {
                    "id": repo,
                    "sha": sha,
                    "siblings": siblings,
                    "private": self.server.private.get(repo, False),
                    "tags": [],
                }
            )

    def _send_file(self, _body: bytes, repo: str, revision: str, name: str) -> None:
        sha = self._find(repo, revision)
        if sha is None:
            return
        data = self.server.commits[repo][sha].get(name)
        if data is None:
            self._send(404, b"{}", **{"X-Error-Code": "EntryNotFound", "X-Repo-Commit": sha})
        else:
            self._send(200, data, **{"X-Repo-Commit": sha, "ETag": f'"{hashlib.sha1(data).hexdigest()}"'})

    def _make_repo(self, body: bytes) -> None:
        asked = json.loads(body)
        repo = f"{asked['organization']}/{asked['name']}"
        if repo not in self.server.refs:
            self.server.private[repo] = bool(asked.get("private")) or asked.get("visibility") == "private"
            self.server.commit(repo, {".gitattributes": b""})
        self._send_json({"url": f"{self.server.url}/{repo}", "name": repo, "id": repo})

    def _send_modes(self, body: bytes, _repo: str, _revision: str) -> None:
        files = [
            {"path": file["path"], "uploadMode": "regular", "shouldIgnore": False, "oid": None}
            for file in json.loads(body)["files"]
        ]
        self._send_json({"files": files, "commitOid": "0" * 40})

    def _take_commit(self, body: bytes, repo: str, revision: str) -> None:
        lines = [json.loads(line) for line in body.splitlines()]
        files = {
            line["value"]["path"]: base64.b64decode(line["value"]["content"]) for line in lines if line["key"] == "file"
        }
        sha = self.server.commit(repo, files, revision)
        self._send_json({"commitUrl": f"{self.server.url}/{repo}/commit/{sha}", "commitOid": sha, "success": True})

    def _send_json(self, content: Any) -> None:
        self._send(200, json.dumps(content).encode(), **{"Content-Type": "application/json"})

    def _send(self, status: int, data: bytes, **headers: str) -> None:
        self.send_response(status)
        for name, value in {"Content-Length": str(len(data)), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)
