"""`--push` against a stand-in for the hub on a real socket: it takes what the hub's own client sends."""

from __future__ import annotations

import base64
import json
import subprocess
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from tests.data.made import clean_rows, write_jsonl
from tests.support import command, environment, rlaif


class FakeHub(ThreadingHTTPServer):
    """Remembers the repositories that were made and the files that were committed."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.made: list[dict[str, Any]] = []
        self.files: dict[str, bytes] = {}
        self.tokens: set[str | None] = set()
        self.refuse = False
        self.url = f"http://127.0.0.1:{self.server_address[1]}"


class _Handler(BaseHTTPRequestHandler):
    server: FakeHub

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        self.server.tokens.add(self.headers.get("Authorization"))
        if self.server.refuse:
            self._answer({"error": "Invalid credentials"}, 401)
        elif self.path == "/api/repos/create":
            self.server.made.append(json.loads(body))
            self._answer({"url": f"{self.server.url}/datasets/me/mine", "name": "me/mine"})
        elif self.path == "/api/validate-yaml":
            self._answer({"errors": [], "warnings": []})
        elif self.path.startswith("/api/datasets/me/mine/preupload/"):
            files = json.loads(body)["files"]
            told = [{"path": each["path"], "uploadMode": "regular", "shouldIgnore": False} for each in files]
            self._answer({"files": told})
        elif self.path.startswith("/api/datasets/me/mine/commit/"):
            for line in map(json.loads, body.splitlines()):
                if line["key"] == "file":
                    self.server.files[line["value"]["path"]] = base64.b64decode(line["value"]["content"])
            url = f"{self.server.url}/datasets/me/mine/commit/0123"
            self._answer({"success": True, "commitOid": "0123", "commitUrl": url, "hookOutput": ""})
        else:
            self._answer({"error": "no such route"}, 404)

    def do_GET(self) -> None:
        self._answer({"sha": "0" * 40, "id": "me/mine", "siblings": []})

    def _answer(self, value: object, status: int = 200) -> None:
        content = json.dumps(value).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *_: object) -> None:
        """Say nothing."""


@pytest.fixture
def hub() -> Iterator[FakeHub]:
    server = FakeHub()
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield server
    server.shutdown()
    server.server_close()


def pushed(hub_url: str, folder: Path, *flags: str, **env: str) -> Any:
    source = write_jsonl(folder / "rows.jsonl", clean_rows(5))
    settings = {"HF_ENDPOINT": hub_url, "HF_HUB_OFFLINE": "0", "HF_TOKEN": "hf_test", "HF_HOME": str(folder / "hf")}
    words = ("data", "export", source, "--format", "trl", "-o", folder / "out", "--push", "me/mine", *flags)
    # The hub's library reads these when it is imported, so that the process has to be a new one.
    return subprocess.run(command(*words), env=environment(**{**settings, **env}), capture_output=True, text=True)


@pytest.mark.parametrize(("flags", "private"), [((), True), (("--public",), False)])
def test_the_folder_arrives_at_the_hub(hub: FakeHub, flags: tuple[str, ...], private: bool, tmp_path: Path) -> None:
    result = pushed(hub.url, tmp_path, *flags)
    assert result.returncode == 0, result.stderr
    assert "Pushed to " in result.stdout and "/datasets/me/mine" in result.stdout
    assert hub.files == {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()}
    assert [(made["name"], made["organization"], made["type"]) for made in hub.made] == [("mine", "me", "dataset")]
    assert hub.made[0].get("private", hub.made[0].get("visibility") == "private") is private
    assert hub.tokens == {"Bearer hf_test"}
    assert b"# me/mine" in hub.files["README.md"]


def test_a_refusal_is_one_line_and_keeps_the_folder(hub: FakeHub, tmp_path: Path) -> None:
    hub.refuse = True
    result = pushed(hub.url, tmp_path)
    assert result.returncode == 2
    assert result.stderr.startswith("Error: me/mine: the hub refuses") and "HF_TOKEN" in result.stderr
    assert (tmp_path / "out" / "train.parquet").is_file()


def test_no_hub_is_one_line(tmp_path: Path) -> None:
    result = pushed("http://127.0.0.1:9", tmp_path)
    assert result.returncode == 1 and "cannot be reached" in result.stderr
    assert result.stderr.count("\n") == 1


def test_offline_is_one_line(hub: FakeHub, tmp_path: Path) -> None:
    result = pushed(hub.url, tmp_path, HF_HUB_OFFLINE="1")
    assert result.returncode == 2 and "HF_HUB_OFFLINE is set" in result.stderr


def test_public_alone_says_nothing(tmp_path: Path) -> None:
    source = write_jsonl(tmp_path / "rows.jsonl", clean_rows(2))
    result = rlaif("data", "export", source, "--format", "trl", "-o", tmp_path / "out", "--public")
    assert result.returncode == 2 and "--public goes with --push" in result.stderr
