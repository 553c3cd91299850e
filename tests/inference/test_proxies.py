"""Proxies of the environment: named as the cause where they cannot be used or fail, passed by where they must be."""

from __future__ import annotations

import json
import socket
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import CliRunner

from rlaif.cli.setup import check
from rlaif.data.files import read_rows
from rlaif.data.publish import push
from rlaif.errors import ModelError, UserError
from rlaif.inference.model_folder import model_folder
from rlaif.inference.transport import proxy_for
from rlaif.records import Message
from rlaif.rl.remote_reward import RemoteReward
from tests.inference.test_server_shapes import write

FAR = "http://10.255.255.1:8000/v1"
ASKED = [(Message(role="user", content="Hello."),)]


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("http_proxy", "https_proxy", "all_proxy", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)


@pytest.fixture
def closed() -> int:
    """A port at which nobody listens."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return int(taken.getsockname()[1])


@pytest.mark.case("29-socks-proxy")
@pytest.mark.parametrize("variable", ["ALL_PROXY", "http_proxy"])
@pytest.mark.parametrize("scheme", ["socks5", "socks5h", "socks4", "SOCKS"])
def test_a_socks_proxy_is_named_as_the_cause(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, variable: str, scheme: str
) -> None:
    monkeypatch.setenv(variable, f"{scheme}://me:hunter2@127.0.0.1:1080")
    told = CliRunner().invoke(check, [str(write(tmp_path, FAR))])
    assert told.exit_code == 2 and "Traceback" not in told.output and "hunter2" not in told.output
    (line,) = {line for line in told.output.splitlines() if "not supported" in line}
    scheme = scheme.lower()
    assert line.startswith(f"{variable}: {scheme}://127.0.0.1:1080 is a proxy of a kind that is not supported")
    assert line.endswith("unset it, name an HTTP proxy, or add 10.255.255.1 to NO_PROXY")
    with pytest.raises(UserError, match=f"^{variable}: {scheme}://127.0.0.1:1080 is a proxy of a kind"):
        RemoteReward("http://10.255.255.1:5000/get_reward")


@pytest.mark.sibling("proxy-without-a-scheme")
def test_a_proxy_without_a_scheme_is_an_http_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("http_proxy", "127.0.0.1:3128")
    assert proxy_for(FAR) == "http://127.0.0.1:3128"


@pytest.mark.sibling("proxy-that-is-no-url")
@pytest.mark.parametrize("value", ["http://", "http://proxy:port", "http://[::1", ":3128"])
def test_what_is_no_url_of_a_proxy(monkeypatch: pytest.MonkeyPatch, value: str) -> None:
    monkeypatch.setenv("HTTP_PROXY", value)
    with pytest.raises(UserError, match=r"^HTTP_PROXY: no URL of a proxy; fix or unset HTTP_PROXY"):
        proxy_for(FAR)


@pytest.mark.sibling("refused-by-the-proxy")
def test_a_refused_connection_says_whose_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, closed: int) -> None:
    server = CliRunner().invoke(check, [str(write(tmp_path, f"http://127.0.0.1:{closed}/v1"))])
    assert "not reachable (connection refused): start the server" in server.output and "PROXY" not in server.output
    monkeypatch.setenv("HTTP_PROXY", f"http://me:hunter2@127.0.0.1:{closed}")
    proxy = CliRunner().invoke(check, [str(write(tmp_path, FAR))])
    assert proxy.exit_code == 2 and "hunter2" not in proxy.output and "start the server" not in proxy.output
    said = f"the proxy http://127.0.0.1:{closed} (`HTTP_PROXY`) failed: connection refused; fix or unset HTTP_PROXY"
    assert said in proxy.output
    reward = RemoteReward("http://10.255.255.1:5000/get_reward", retries=0)
    with pytest.raises(ModelError, match=r"the proxy http://127.0.0.1:\d+ \(`HTTP_PROXY`\) failed") as raised:
        reward(ASKED, ["Hi."])
    assert "hunter2" not in str(raised.value)


@pytest.mark.sibling("no-proxy-in-its-forms")
@pytest.mark.parametrize(
    "excluded", ["10.255.255.1", "10.255.255.1:8000", "10.0.0.0/8", "example.com, 10.255.0.0/16", "*"]
)
def test_hosts_that_are_asked_directly(monkeypatch: pytest.MonkeyPatch, excluded: str) -> None:
    monkeypatch.setenv("ALL_PROXY", "socks5://127.0.0.1:1080")
    monkeypatch.setenv("NO_PROXY", excluded)
    assert proxy_for(FAR) is None


@pytest.mark.sibling("no-proxy-of-another-port")
def test_hosts_that_are_not(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ALL_PROXY", "http://127.0.0.1:3128")
    for excluded in ("10.255.255.1:9000", "11.0.0.0/8", "10.255.255.1.example.com", ""):
        monkeypatch.setenv("NO_PROXY", excluded)
        assert proxy_for(FAR) == "http://127.0.0.1:3128"


@pytest.mark.sibling("socks-proxy-and-this-machine")
def test_this_machine_is_asked_past_any_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ALL_PROXY", json.dumps("no proxy at all"))
    assert proxy_for("http://127.0.0.1:8000/v1") is None and proxy_for("http://localhost:8000/v1") is None


@pytest.mark.sibling("socks-proxy-and-the-hub")
@pytest.mark.parametrize(
    "call",
    [
        lambda: model_folder("owner/name"),
        lambda: list(read_rows("owner/name")),
        lambda: push(Path("nowhere"), "owner/name"),
    ],
)
def test_the_hub_behind_a_socks_proxy(monkeypatch: pytest.MonkeyPatch, call: Callable[[], object]) -> None:
    """Its client cannot be made then: that was a traceback about a package."""
    monkeypatch.setenv("all_proxy", "socks5://me:hunter2@127.0.0.1:1080")
    monkeypatch.setenv("NO_PROXY", "")

    def fail(*_: object, **__: object) -> None:
        raise ImportError("Using SOCKS proxy, but the 'socksio' package is not installed.")

    monkeypatch.setattr("huggingface_hub.snapshot_download", fail)
    monkeypatch.setattr("huggingface_hub.HfApi.create_repo", fail)
    monkeypatch.setattr("datasets.load_dataset", fail)
    with pytest.raises(
        UserError, match=r"^all_proxy: socks5://127.0.0.1:1080 is a proxy of a kind that is not"
    ) as told:
        call()
    assert "hunter2" not in str(told.value)
