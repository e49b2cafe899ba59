"""A loopback server that takes runs of Weights & Biases 0.31 and remembers them: as much protocol as that needs."""

from __future__ import annotations

import gzip
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


@dataclass
class ServedRun:
    """What the server knows of one run.

    history: rows in the order of their offsets in the stream.
    exit_codes: one for each time that a process finished the run.
    """

    id: str
    project: str = ""
    group: str = ""
    job_type: str = ""
    name: str = ""
    config: dict[str, Any] = field(default_factory=dict)
    history: list[dict[str, Any]] = field(default_factory=list)
    summary: dict[str, Any] = field(default_factory=dict)
    exit_codes: list[int] = field(default_factory=list)
    files: set[str] = field(default_factory=set)

    def take_stream(self, message: dict[str, Any]) -> None:
        """Take one message of the stream: chunks of files that are lists of JSON lines, and perhaps the exit."""
        for name, chunk in (message.get("files") or {}).items():
            rows = [json.loads(line) for line in chunk["content"]]
            if name == "wandb-history.jsonl":
                assert chunk["offset"] <= len(self.history), "a gap in the stream"
                self.history[chunk["offset"] :] = rows
            elif name == "wandb-summary.json":
                self.summary = rows[-1]
        if message.get("complete"):
            self.exit_codes.append(message["exitcode"])


class Server(ThreadingHTTPServer):
    """Listens on 127.0.0.1 at a free port; `hang` makes it accept requests and never answer."""

    daemon_threads = True
    block_on_close = False

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.runs: dict[str, ServedRun] = {}
        self.unknown: list[str] = []
        self.hangs, self.closing = threading.Event(), threading.Event()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def hang(self) -> None:
        """Answer nothing from now on."""
        self.hangs.set()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Say nothing: clients drop connections that they keep alive."""


@contextmanager
def serve_wandb() -> Iterator[Server]:
    """Serve in a thread of this process."""
    with Server() as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
        thread.start()
        try:
            yield server
        finally:
            server.closing.set()
            server.shutdown()
            thread.join(timeout=10)


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Server  # pyright: ignore[reportIncompatibleVariableOverride]

    def log_message(self, format: str, *args: Any) -> None:
        pass

    def do_GET(self) -> None:
        self._answer({})

    def do_PUT(self) -> None:
        self._read()
        _, _, run, name = self.path.split("/", 3)
        self.server.runs[run].files.add(name)
        self._answer({})

    def do_POST(self) -> None:
        body = self._read()
        if self.path == "/graphql":
            query = json.loads(body)
            self._answer({"data": self._resolve(query["operationName"], query.get("variables") or {})})
        elif self.path.endswith("/file_stream"):
            self.server.runs[self.path.split("/")[-2]].take_stream(json.loads(body))
            self._answer({"exitcode": None, "limits": {}})
        else:
            self.server.unknown.append(self.path)
            self._answer({})

    def _read(self) -> bytes:
        if self.headers.get("Transfer-Encoding", "").lower() == "chunked":
            body = b""
            while size := int(self.rfile.readline().split(b";")[0], 16):
                body += self.rfile.read(size)
                self.rfile.readline()
            self.rfile.readline()
        else:
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        return gzip.decompress(body) if self.headers.get("Content-Encoding") == "gzip" else body

    def _answer(self, value: Any) -> None:
        if self.server.hangs.is_set():
            self.server.closing.wait(timeout=60)
            return
        body = json.dumps(value).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def _resolve(self, operation: str, variables: dict[str, Any]) -> dict[str, Any]:
        runs = self.server.runs
        match operation:
            case "Viewer":
                return {"viewer": {"id": "1", "entity": "someone", "username": "someone", "teams": {"edges": []}}}
            case "RunResumeStatus":
                return {"model": _describe(runs.get(variables["name"]))}
            case "UpsertBucket":
                run = runs.setdefault(variables["name"], ServedRun(variables["name"]))
                is_new = not run.project
                run.project = variables.get("project") or run.project
                run.group = variables.get("groupName") or run.group
                run.job_type = variables.get("jobType") or run.job_type
                run.name = variables.get("displayName") or run.name
                run.config = json.loads(variables["config"]) if variables.get("config") else run.config
                bucket = {"id": run.id, "name": run.id, "displayName": run.name, "config": "{}", "project": _PROJECT}
                return {"upsertBucket": {"bucket": {**bucket, "historyLineCount": 0}, "inserted": is_new}}
            case "CreateRunFiles":
                names, run = variables["files"], variables["run"]
                files = [{"name": name, "uploadUrl": f"{self.server.url}/upload/{run}/{name}"} for name in names]
                return {"createRunFiles": {"runID": run, "uploadHeaders": [], "files": files}}
            case "CreateArtifact":  # what a table is as well; nothing more is asked about one that is committed
                sequence = {"id": "1", "latestArtifact": None}
                return {"createArtifact": {"artifact": {"id": "1", "state": "COMMITTED", "artifactSequence": sequence}}}
            case "ServerFeaturesQuery":
                return {"serverInfo": {"features": []}}
            case "RunStoppedStatus":
                return {"project": {"run": {"stopped": False}}}
        self.server.unknown.append(operation)
        return {}


_PROJECT = {"id": "1", "name": "infoscope", "internalId": "1", "entity": {"id": "1", "name": "someone"}}


def _describe(run: ServedRun | None) -> dict[str, Any]:
    """What a process that resumes a run asks for."""
    if run is None:
        return {"bucket": None}
    tail = json.dumps([json.dumps(row) for row in run.history[-1:]])
    lines = {"historyLineCount": len(run.history), "logLineCount": 0, "eventsLineCount": 0}
    return {
        "id": "1",
        "name": "infoscope",
        "entity": {"id": "1", "name": "someone"},
        "bucket": {
            "id": run.id,
            "name": run.id,
            "displayName": run.name,
            "config": json.dumps(run.config),
            "summaryMetrics": json.dumps(run.summary),
            "historyTail": tail,
            "eventsTail": "[]",
            "wandbConfig": '{"t": 1}',
            "tags": [],
            **lines,
        },
    }
