"""An explorer over http: its files and nothing else, to this machine alone, and the page as it is from the disk."""

from __future__ import annotations

import http.client
import os
import shutil
import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from infoscope.explorer import server as serving
from infoscope.explorer.server import ExplorerServer, find_file, make_policy, open_server
from infoscope.runtime.errors import InputError


@pytest.fixture
def folder(sample: Path, tmp_path: Path) -> Path:
    """An explorer beside a file that is nobody's business, with links to it."""
    folder = tmp_path / "explorer"
    shutil.copytree(sample.parent, folder)
    (tmp_path / "secret.js").write_text("secret")
    (tmp_path / "explorer-2").mkdir()
    (tmp_path / "explorer-2" / "secret.js").write_text("secret")
    (folder / "config.yaml").write_text("output_dir: /home/me")
    (folder / ".hidden.js").write_text("secret")
    (folder / "data" / "link.js").symlink_to(tmp_path / "secret.js")
    (folder / "linked").symlink_to(tmp_path)
    (folder / "data" / "loop.js").symlink_to(folder / "data" / "loop.js")
    (folder / "page" / "inner.js").symlink_to(folder / "page" / "main.js")
    return folder


@pytest.fixture
def server(folder: Path) -> Iterator[ExplorerServer]:
    with open_server(folder, 0) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def ask(server: ExplorerServer, path: str, method: str = "GET", **headers: str):
    """Return the status, the headers and the body of an answer; the path goes out as it is written."""
    connection = http.client.HTTPConnection("127.0.0.1", server.server_port, timeout=10)
    connection.request(method, path, headers={name.replace("_", "-"): value for name, value in headers.items()})
    answer = connection.getresponse()
    found = answer.status, answer.headers, answer.read()
    connection.close()
    return found


def test_page_works_as_from_the_disk(open_page, server: ExplorerServer):
    page = open_page(server.address)
    assert page.inner_text("h1") == page.title() == "scenes_clip on scenes <b>sample</b>"
    assert page.locator("header option").count() == 2
    loaded = page.evaluate("infoscope.load('images/train/0000/0000000').then((url) => url.slice(0, 15))")
    assert loaded == "data:image/webp"


@pytest.mark.parametrize(
    ("path", "kind"),
    [
        ("/", "text/html; charset=utf-8"),
        ("/index.html?view=seed1", "text/html; charset=utf-8"),
        ("/page/main.js", "text/javascript; charset=utf-8"),
        ("/page/inner.js", "text/javascript; charset=utf-8"),
        ("/page/style.css", "text/css; charset=utf-8"),
        ("/data/manifest.js", "text/javascript; charset=utf-8"),
    ],
)
def test_files_of_the_explorer_are_sent_as_what_they_are(server: ExplorerServer, folder: Path, path: str, kind: str):
    status, headers, body = ask(server, path)
    name = path.removeprefix("/").partition("?")[0] or "index.html"
    assert (status, headers["Content-Type"], body) == (200, kind, (folder / name).read_bytes())
    assert ask(server, path, "HEAD")[::2] == (200, b"")


@pytest.mark.parametrize(
    "path",
    [
        "/../secret.js",
        "/page/../../secret.js",
        "/%2e%2e/secret.js",
        "/page/%2e%2e%2f%2e%2e%2fsecret.js",
        "/..%5csecret.js",
        "/../explorer-2/secret.js",
        "//etc/passwd",
        "/etc/passwd",
        "/%2fetc/passwd",
        "/data/link.js",
        "/data/loop.js",
        "/linked/secret.js",
        "/.hidden.js",
        "/config.yaml",
        "/data/",
        "/data",
        "/page//main.js",
        "/page/./main.js",
        "/page/main.js/",
        "/page/main.js%00",
        "/%ff%fe.js",
        "/" + "a" * 300 + ".js",
        "/no/such.js",
        "secret.js",
    ],
)
def test_nothing_else_is_sent(server: ExplorerServer, path: str):
    status, headers, body = ask(server, path)
    assert status in (400, 404)
    assert b"secret" not in body
    assert headers["Content-Security-Policy"] == server.policy


def test_linked_folder_is_served_itself(folder: Path, tmp_path: Path):
    link = tmp_path / "link"
    link.symlink_to(folder)
    with open_server(link, 0) as server:
        assert find_file(server.folder, "/index.html") == (folder / "index.html").resolve()


def test_every_answer_is_for_this_page_alone(server: ExplorerServer, folder: Path):
    nonce = (folder / "index.html").read_text().partition('data-nonce="')[2].partition('"')[0]
    expected = {
        "Content-Security-Policy": make_policy(nonce),
        "X-Content-Type-Options": "nosniff",
        "Referrer-Policy": "no-referrer",
        "Cross-Origin-Resource-Policy": "same-origin",
        "Cross-Origin-Opener-Policy": "same-origin",
        "Server": "infoscope",
    }
    assert f"style-src 'self' 'nonce-{nonce}'; " in expected["Content-Security-Policy"]
    assert expected["Content-Security-Policy"].endswith("frame-ancestors 'none'")
    for path in ("/", "/data/manifest.js", "/nothing"):
        _, headers, _ = ask(server, path, Origin="https://evil.example")
        assert {name: headers[name] for name in expected} == expected
        assert not any(name.startswith("Access-Control") for name in headers)


@pytest.mark.parametrize("host", ["evil.example", "evil.example:80", "127.0.0.1.evil.example", "", "0.0.0.0", "[::1]"])
def test_a_site_whose_name_points_here_gets_nothing(server: ExplorerServer, host: str):
    status, _, body = ask(server, "/data/manifest.js", Host=host)
    assert status == 403
    assert b"infoscope.put" not in body


@pytest.mark.parametrize("host", ["localhost:9000", "localhost", "127.0.0.1"])
def test_a_tunnel_may_end_at_another_port(server: ExplorerServer, host: str):
    assert ask(server, "/", Host=host)[0] == 200


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "OPTIONS"])
def test_nothing_can_be_changed(server: ExplorerServer, method: str):
    assert ask(server, "/index.html", method)[0] == 501


def test_files_are_sent_again_only_when_they_have_changed(server: ExplorerServer, folder: Path):
    _, headers, _ = ask(server, "/data/manifest.js")
    assert headers["Cache-Control"] == "no-cache"
    status, _, body = ask(server, "/data/manifest.js", If_None_Match=headers["ETag"])
    assert (status, body) == (304, b"")
    os.utime(folder / "data" / "manifest.js", ns=(1, 1))
    assert ask(server, "/data/manifest.js", If_None_Match=headers["ETag"])[0] == 200


def test_a_connection_takes_many_requests(server: ExplorerServer):
    connection = http.client.HTTPConnection("127.0.0.1", server.server_port, timeout=10)
    for path, expected in (("/", 200), ("/page/main.js", 200), ("/page/style.css", 200)):
        connection.request("GET", path)
        opened = connection.sock
        answer = connection.getresponse()
        assert (answer.status, len(answer.read())) == (expected, int(answer.headers["Content-Length"]))
        assert connection.sock is opened
    connection.close()


def test_it_listens_on_this_machine_alone(server: ExplorerServer):
    assert server.server_address[0] == "127.0.0.1"


def test_a_taken_port_gives_the_next(sample: Path, monkeypatch: pytest.MonkeyPatch):
    with open_server(sample.parent, 0) as first:
        if first.server_port == 65535:
            pytest.skip("there is no next one")
        with open_server(sample.parent, first.server_port) as second:
            assert second.server_port > first.server_port
        monkeypatch.setattr(serving, "N_TRIED", 1)
        taken = first.server_port
        with pytest.raises(InputError, match=f"^The ports {taken} to {taken} are all taken: give another as port="):
            open_server(sample.parent, taken)


def test_a_port_of_the_system_is_a_sentence(sample: Path, monkeypatch: pytest.MonkeyPatch):
    def refuse(self, address):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(socket.socket, "bind", refuse)
    with pytest.raises(InputError, match=r"^Port 80 may not be taken by this user: give one above 1023"):
        open_server(sample.parent, 80)
