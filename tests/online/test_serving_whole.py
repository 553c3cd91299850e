"""All weights of a policy in the place of a server's own: what it is told, and, on a real vLLM, whose answers come."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import httpx
import pytest
import torch

from rlaif.errors import ModelError, UserError
from rlaif.rl.config import OnlineSettings
from rlaif.rl.experience import Response, TokenizedPrompt, check_in_step
from rlaif.rl.networks import weights_folder_name
from rlaif.rl.vllm_rollout import ServedSampler
from rlaif.rl.weight_sync import Adapters, RetryingClient, WholeWeights
from tests.conftest import Served
from tests.online.runs import given
from tests.online.test_serving import apart, choice, refused, saved
from tests.training.small import letters

ASKED = [TokenizedPrompt("one", (), [5, 9, 100, 7, 33]), TokenizedPrompt("long", (), list(range(20, 320)))]
"""The second is longer than two blocks of the cache, which hold 128 tokens each on a CPU."""
NOT_FOUND = httpx.Response(404, json={"detail": "Not Found"})


class FakeServer:
    """Replies in the words of vLLM 0.32; a route can be given others."""

    def __init__(self, **instead: httpx.Response) -> None:
        self.instead = instead
        self.told: list[tuple[str, Any]] = []
        self.seen: list[bool] = []
        """Whether the weights lay where they were said to be."""

    def __call__(self, request: httpx.Request) -> httpx.Response:
        route, body = request.url.path.strip("/").replace("/", "_"), json.loads(request.content or b"null")
        if route == "v1_models":
            return httpx.Response(200, json={"data": [{"id": "policy", "root": "/start", "max_model_len": 64}]})
        self.told.append((route, body))
        if route in self.instead:
            return self.instead[route]
        if route == "collective_rpc":
            self.seen.append((Path(body["kwargs"]["weights_path"]) / "adapter_model.safetensors").is_file())
            return httpx.Response(200, json={"results": [None]})
        if route == "reset_prefix_cache":
            return httpx.Response(200, json={"success": True})
        return httpx.Response(200, json={"choices": [choice(body, at) for at in range(body["n"])]})


def served(fake: FakeServer, folder: Path) -> ServedSampler:
    return ServedSampler(
        "http://policy.test/v1", WholeWeights(saved, folder / "shared", "policy", folder_name="mine"),
        tokenizer=letters(), max_tokens=8, ends=frozenset({6}), backoff=0.001, transport=httpx.MockTransport(fake),
    )  # fmt: skip


def test_every_update_is_read_and_what_older_ones_computed_forgotten(tmp_path: Path) -> None:
    fake = FakeServer()
    sampler = served(fake, tmp_path)
    for version in range(2):
        sampler.update(version)
        assert sampler.sample(ASKED[:1], 1, 0)[0].version == version
    sampler.close()
    read = {"method": "reload_weights", "kwargs": {"weights_path": str(tmp_path / "shared/rlaif-mine")}}
    back = {"method": "reload_weights", "kwargs": {"weights_path": "/start"}}
    steps = [("collective_rpc", read), ("reset_prefix_cache", {}), ("v1_completions", None)]
    found = [(route, None if route == "v1_completions" else body) for route, body in fake.told]
    assert found == [*steps, *steps, ("collective_rpc", back), ("reset_prefix_cache", {})]
    assert fake.seen == [True, True, False]
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("instead", "message"),
    [
        ({"collective_rpc": NOT_FOUND}, "takes no weights while it runs; start it with VLLM_SERVER_DEV_MODE=1"),
        ({"collective_rpc": refused(500, "no tensor `x`")}, "refuses the weights: HTTP 500: no tensor `x`; does it"),
        ({"reset_prefix_cache": httpx.Response(200, json={"success": False})}, "leave the server to this training"),
        ({"reset_prefix_cache": NOT_FOUND}, "takes no weights while it runs"),
    ],
)
def test_a_server_that_does_not_take_them(instead: dict[str, httpx.Response], message: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=f"^http://policy.test/v1: .*{message}"):
        served(FakeServer(**instead), tmp_path).update(0)
    assert list((tmp_path / "shared").iterdir()) == []


def with_work_of_years(folder: Path) -> dict[str, bytes]:
    """A folder with things in it that no training has made, under the names that come to mind."""
    files = (
        "weights/model.safetensors",
        "versions/v0-1/adapter.bin",
        "rlaif-notes/notes.txt",
        "shared/me",
        "thesis.tex",
    )
    for name in files:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(f"years of {name}")
    return {str(path): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


class Saying(RetryingClient):
    """A server that does what it is told, and remembers where the weights lay."""

    def __init__(self) -> None:
        self.shown, self.paths = "server", []

    async def models(self) -> list[dict[str, Any]]:
        return [{"id": "policy", "root": "/start"}]

    async def order(self, route: str, body: Any, **_: Any) -> dict[str, Any]:
        found = body.get("lora_path") or body.get("kwargs", {}).get("weights_path", "")
        if found and found != "/start":
            self.paths.append(Path(found))
            assert any(Path(found).iterdir()), route
        return {"success": True}


async def one_after_another(*carriers: Any) -> list[list[Path]]:
    """Every training loads two versions while the others do, then all of them end."""
    lines = [Saying() for _ in carriers]
    for carrier, line in zip(carriers, lines, strict=True):
        await carrier.begin(line)
    for version in range(2):
        for carrier, line in zip(carriers, lines, strict=True):
            await carrier.load(line, version)
    for carrier, line in zip(carriers, lines, strict=True):
        await carrier.end(line)
    return [line.paths for line in lines]


@pytest.mark.case("sec-17-rollout-weights-folder")
@pytest.mark.parametrize("kind", [WholeWeights, Adapters])
@pytest.mark.parametrize("own", [None, "mine"])
def test_a_folder_of_the_users_keeps_all_that_is_theirs(kind: Any, own: str | None, tmp_path: Path) -> None:
    before = with_work_of_years(tmp_path)
    (paths,) = asyncio.run(one_after_another(kind(saved, tmp_path, None, folder_name=own)))
    assert all(tmp_path in path.parents and not path.exists() for path in paths)
    assert {str(path): path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before


@pytest.mark.sibling("two-trainings-one-weights-folder")
@pytest.mark.parametrize("kind", [WholeWeights, Adapters])
def test_two_trainings_in_one_folder_have_each_their_own(kind: Any, tmp_path: Path) -> None:
    trainings = [kind(saved, tmp_path, None, folder_name=own) for own in ("one", "two", None, None)]
    paths = asyncio.run(one_after_another(*trainings))
    each = [{path.parent if kind is Adapters else path for path in some} for some in paths]
    assert all(len(some) == 1 for some in each) and len(set.union(*each)) == 4
    assert list(tmp_path.iterdir()) == []


@pytest.mark.sibling("weights-folder-is-a-link")
@pytest.mark.parametrize("kind", [WholeWeights, Adapters])
def test_a_link_in_place_of_its_folder_is_not_followed(kind: Any, tmp_path: Path) -> None:
    """/dev/shm is everybody's, and the name of a training's folder in it can be known beforehand."""
    before = with_work_of_years(tmp_path / "elsewhere")
    (tmp_path / "shm").mkdir()
    (tmp_path / "shm" / "rlaif-mine").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(UserError, match="no weights can be laid there for the server: File exists"):
        asyncio.run(one_after_another(kind(saved, tmp_path / "shm", None, folder_name="mine")))
    assert {str(path): path.read_bytes() for path in (tmp_path / "elsewhere").rglob("*") if path.is_file()} == before


@pytest.mark.sibling("empty-weights-folder-stays")
def test_an_empty_folder_of_the_users_stays_and_a_new_one_goes(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    asyncio.run(one_after_another(WholeWeights(saved, tmp_path / "empty", None)))
    asyncio.run(one_after_another(Adapters(saved, tmp_path / "new" / "deep", None)))
    assert [path.name for path in tmp_path.iterdir()] == ["empty"]


def test_each_output_has_a_name_of_its_own(tmp_path: Path) -> None:
    """What a killed training left is found by the one that goes on, wherever the command is given."""
    names = {
        weights_folder_name(OnlineSettings.model_validate(given(tmp_path, output=str(tmp_path / at))))
        for at in ("a", "b", "a/../a")
    }
    assert len(names) == 2


def test_older_servers_reply_to_a_reset_without_a_word(tmp_path: Path) -> None:
    fake = FakeServer(reset_prefix_cache=httpx.Response(200), collective_rpc=httpx.Response(200))
    served(fake, tmp_path).update(0)
    assert len(fake.told) == 2


def test_a_server_that_has_gone_is_left_alone(tmp_path: Path) -> None:
    fake = FakeServer()
    sampler = served(fake, tmp_path)
    sampler.update(0)
    fake.instead = {"collective_rpc": httpx.Response(503)}
    sampler.close()
    assert len(fake.told) == 3


# On a real vLLM.

DIGITS = 1e-4
"""Rounding alone makes 1e-6 of float32 on a CPU; the weights of another version are off by 0.1 and more."""


class Policy:
    """A model all of whose weights learn."""

    def __init__(self, folder: Path) -> None:
        from transformers import AutoModelForCausalLM, AutoTokenizer

        self.tokenizer = AutoTokenizer.from_pretrained(folder)
        self.model: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()

    def learn(self, seed: int) -> None:
        torch.manual_seed(seed)
        with torch.no_grad():
            for weights in self.model.parameters():
                weights.add_(torch.randn_like(weights) * weights.std().nan_to_num(0.1) * 0.5)

    def logps(self, responses: list[Response]) -> list[list[float]]:
        return [self.logps_of(response) for response in responses]

    def logps_of(self, response: Response) -> list[float]:
        whole = [*response.prompt.ids, *response.ids]
        with torch.no_grad():
            logits = self.model(input_ids=torch.tensor([whole])).logits[0, len(response.prompt.ids) - 1 : -1]
        return [float(row[token]) for row, token in zip(logits.log_softmax(-1), response.ids, strict=True)]


def on(server: Served, policy: Policy, folder: Path) -> ServedSampler:
    carrier = WholeWeights(policy.model.save_pretrained, folder, None)
    return ServedSampler(
        server.base_url, carrier, tokenizer=policy.tokenizer, max_tokens=24, ends=frozenset({2, 50, 60, 70})
    )


@pytest.mark.server
def test_after_every_update_the_servers_numbers_are_the_trainers(vllm_with_adapters: Served, tmp_path: Path) -> None:
    """Prompts long enough for the cache of prefixes: what older weights computed of them would show."""
    policy = Policy(vllm_with_adapters.folder)
    sampler = on(vllm_with_adapters, policy, tmp_path)
    for version in range(4):
        if version:
            policy.learn(version)
            sampler.update(version)
        found = sampler.sample(ASKED, 3, step=version)
        own = policy.logps(found)
        print(f"version {version}: off by {check_in_step(found, own, DIGITS):.1e} a token")
        assert [each.version for each in found] == [version] * 6
        assert max(map(apart, found, own)) < 10 * DIGITS
    sampler.close()
    start = Policy(vllm_with_adapters.folder)
    found = sampler.sample(ASKED, 1, step=0)
    check_in_step(found, start.logps(found), DIGITS)


@pytest.mark.server
def test_weights_that_were_left_behind_are_noticed(
    vllm_with_adapters: Served, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second load is planted to fail unseen; and after it, only that the cache of prefixes is emptied."""
    policy = Policy(vllm_with_adapters.folder)
    sampler = on(vllm_with_adapters, policy, tmp_path)
    sampler.sample(ASKED, 1, step=0)

    async def nothing(*_: Any, **__: Any) -> None:
        pass

    policy.learn(1)
    with monkeypatch.context() as patch:
        patch.setattr(WholeWeights, "_take", nothing)
        sampler.update(1)
    found = sampler.sample(ASKED, 3, step=0)
    with pytest.raises(ModelError, match="the answers are not those of version 1 of the policy"):
        check_in_step(found, policy.logps(found), 0.1)
    sampler.close()


@pytest.mark.server
def test_what_the_server_does_not_take(vllm_with_adapters: Served, vllm: Served, tmp_path: Path) -> None:
    policy = Policy(vllm_with_adapters.folder)
    with pytest.raises(UserError, match="takes no weights while it runs; start it with VLLM_SERVER_DEV_MODE=1"):
        on(vllm, policy, tmp_path).update(0)
    policy.model.save_pretrained = lambda folder: None
    sampler = on(vllm_with_adapters, policy, tmp_path)
    with pytest.raises(
        UserError, match=r"refuses the weights: .*; does it serve this model, and see .*/rlaif-[0-9a-f]+\?"
    ):
        sampler.update(0)
    sampler.close()
