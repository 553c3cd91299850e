"""Answers drawn on a server: what is asked, what is taken for an answer, and, on a real vLLM, whose weights gave it."""

from __future__ import annotations

import json
import math
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest.mock import MagicMock

import httpx
import pytest
import torch

from rlaif.errors import ModelError, RlaifError, UserError
from rlaif.rl.config import OnlineSettings
from rlaif.rl.experience import Response, TokenizedPrompt, check_in_step
from rlaif.rl.networks import sampler_of
from rlaif.rl.rollout import LocalSampler
from rlaif.rl.vllm_rollout import ServedSampler, seed_of
from rlaif.rl.weight_sync import Adapters
from rlaif.training.loading import find_start
from tests.conftest import Served
from tests.online.runs import begin, given
from tests.training.small import letters

END = 2
ASKED = [
    TokenizedPrompt("one", (), [5, 9, 100, 7, 33]),
    TokenizedPrompt("two", (), [8]),
    TokenizedPrompt("three", (), list(range(20, 60))),
]


class FakeServer:
    """Replies in the words of vLLM 0.32; `completion` and `load` can be given others."""

    def __init__(self, completion: Any = None, load: Any = None) -> None:
        self.completion, self.load = completion, load
        self.bodies: list[dict[str, Any]] = []
        self.loaded: dict[str, str] = {}
        self.tries = 0

    def __call__(self, request: httpx.Request) -> httpx.Response:
        path, body = request.url.path, json.loads(request.content or b"null")
        if path == "/v1/models":
            cards = [{"id": "policy", "root": "/m", "parent": None}]
            cards += [{"id": name, "root": root, "parent": "policy"} for name, root in self.loaded.items()]
            return httpx.Response(200, json={"data": cards})
        self.tries += 1
        if path == "/v1/load_lora_adapter":
            self.loaded[body["lora_name"]] = body["lora_path"]
            return self.load(self) if self.load else httpx.Response(200, text="Success: LoRA adapter added.")
        if path == "/v1/unload_lora_adapter":
            del self.loaded[body["lora_name"]]
            return httpx.Response(200, text="Success: LoRA adapter removed.")
        self.bodies.append(body)
        found = self.completion(self, body) if self.completion else None
        return found or httpx.Response(200, json={"choices": [choice(body, at) for at in range(body["n"])]})


def choice(body: dict[str, Any], index: int, **other: Any) -> dict[str, Any]:
    """An answer `d a </s>` (3, 0, 6 of `letters`), with its index in the log-probabilities."""
    told = {"index": index, "finish_reason": "stop", "token_ids": [3, 0, 6], "prompt_token_ids": body["prompt"]}
    return told | {"logprobs": {"token_logprobs": [-1.0, -2.0, -float(index)]}} | other


def saved(folder: Path) -> None:
    (folder / "adapter_model.safetensors").write_text("weights")


def served(fake: FakeServer, folder: Path, **options: Any) -> ServedSampler:
    settings = {"max_tokens": 8, "ends": frozenset({6}), "backoff": 0.001, "tokenizer": letters()} | options
    transport, carrier = httpx.MockTransport(fake), Adapters(saved, folder, "policy", folder_name="mine")
    return ServedSampler("http://policy.test/v1", carrier, transport=transport, **settings)


def test_answers_keep_their_prompt_their_order_and_their_tokens(tmp_path: Path) -> None:
    fake = FakeServer(lambda _, body: httpx.Response(200, json={"choices": [choice(body, 1), choice(body, 0)]}))
    sampler = served(fake, tmp_path)
    sampler.update(3)
    found = sampler.sample(ASKED, 2, 0)
    assert [(each.prompt, each.index, each.logps[-1]) for each in found] == [
        (one, index, -float(index)) for one in ASKED for index in range(2)
    ]
    assert {(tuple(each.ids), each.text, each.finished, each.version) for each in found} == {
        ((3, 0, 6), "d a", True, 3)
    }


def test_what_the_server_is_asked(tmp_path: Path) -> None:
    """Nothing that its own defaults could decide is left open."""
    fake = FakeServer()
    served(fake, tmp_path, seed=4, top_p=1.0).sample(ASKED[:1], 2, 9)
    (body,) = fake.bodies
    assert body.pop("model") in fake.loaded
    assert body == {
        "prompt": ASKED[0].ids, "n": 2, "max_tokens": 8, "temperature": 1.0, "seed": seed_of(4, 9, "one"),
        "stop_token_ids": [6], "ignore_eos": True, "logprobs": 0,
        "return_token_ids": True, "return_tokens_as_token_ids": True,
        "top_p": 1.0, "top_k": 0, "min_p": 0.0,
        "repetition_penalty": 1.0, "presence_penalty": 0.0, "frequency_penalty": 0.0,
    }  # fmt: skip
    seeds = {seed_of(seed, step, prompt) for seed in (0, 1) for step in (0, 1) for prompt in ("a", "b", "\ud800")}
    assert len(seeds) == 12 and all(0 <= seed < 2**62 for seed in seeds)


def test_the_key_of_a_server_comes_from_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rollout = {"base_url": "http://policy.test/v1", "api_key_env": "POLICY_KEY"}
    settings = OnlineSettings.model_validate(given(begin(tmp_path), rollout=rollout))
    nobody: Any = MagicMock()
    monkeypatch.setenv("POLICY_KEY", "secret")
    sampler = sampler_of(settings, nobody, letters(), find_start(settings.model), nobody)
    assert isinstance(sampler, ServedSampler) and sampler._connection.hide("my secret") == "my ***"
    monkeypatch.delenv("POLICY_KEY")
    with pytest.raises(UserError, match="the environment variable `POLICY_KEY` is not set"):
        sampler_of(settings, nobody, letters(), find_start(settings.model), nobody)


def test_every_update_has_a_name_and_a_folder_of_its_own(tmp_path: Path) -> None:
    fake = FakeServer()
    sampler = served(fake, tmp_path)
    names = []
    for version in (0, 1, 1, 2):
        sampler.update(version)
        assert sampler.sample(ASKED[:1], 1, 0)[0].version == version
        names.append(fake.bodies[-1]["model"])
    assert len(set(names)) == 4
    assert [name.rpartition("-")[0] for name in names] == ["policy-v0", "policy-v1", "policy-v1", "policy-v2"]
    assert list(fake.loaded) == names[-2:]
    assert {str(path) for path in (tmp_path / "rlaif-mine").iterdir()} == set(fake.loaded.values())
    assert all((Path(path) / "adapter_model.safetensors").is_file() for path in fake.loaded.values())
    sampler.close()
    assert fake.loaded == {} and not (tmp_path / "rlaif-mine").exists()


def test_what_a_killed_training_left_is_cleared_away(tmp_path: Path) -> None:
    fake = FakeServer()
    fake.loaded = {"other": "/elsewhere/rlaif-mine/v1-0"}
    served(fake, tmp_path / "a").update(5)
    assert len(fake.loaded) == 2
    (left,) = (tmp_path / "a" / "rlaif-mine").iterdir()
    served(fake, tmp_path / "a").update(6)
    assert not left.exists() and str(left) not in fake.loaded.values()
    assert "other" in fake.loaded and len(fake.loaded) == 2


def refused(status: int, message: str) -> httpx.Response:
    return httpx.Response(status, json={"error": {"message": message, "type": "x", "code": status}})


def worker(message: str) -> httpx.Response:
    words = f"Call to add_lora method failed: Worker failed with error '{message}', please check the stack trace above"
    return refused(500, words)


@pytest.mark.parametrize(
    ("reply", "message"),
    [
        (httpx.Response(404, json={"detail": "Not Found"}), "start it with VLLM_ALLOW_RUNTIME_LORA_UPDATING=True"),
        (
            worker("LoRA is not enabled. Use --enable-lora to enable LoRA."),
            "takes no adapters; start it with --enable-l",
        ),
        (worker("LoRA rank 12 is greater than max_lora_rank 8."), "of rank 12; start it with --max-lora-rank 16"),
        (worker("vLLM does not yet support DoRA."), "refuses the adapter: vLLM does not yet support DoRA.; train one"),
    ],
)
def test_a_server_that_takes_no_adapter_is_told_how_to(reply: httpx.Response, message: str, tmp_path: Path) -> None:
    fake = FakeServer(load=lambda _: reply)
    with pytest.raises(UserError, match=f"^http://policy.test/v1: .*{message}"):
        served(fake, tmp_path).update(0)
    assert fake.tries == 1 and list((tmp_path / "rlaif-mine").iterdir()) == []


def test_a_lost_reply_to_a_load_is_no_refusal(tmp_path: Path) -> None:
    def flaky(fake: FakeServer) -> httpx.Response:
        return httpx.Response(502) if fake.tries == 1 else refused(400, "The lora adapter 'x' has already been loaded.")

    fake = FakeServer(load=flaky)
    served(fake, tmp_path).update(0)
    assert fake.tries == 2 and len(fake.loaded) == 1


def test_an_unknown_model_is_named(tmp_path: Path) -> None:
    sampler = ServedSampler(
        "http://policy.test/v1", Adapters(saved, tmp_path, "polisy"), tokenizer=letters(), max_tokens=8,
        ends=frozenset({6}), transport=httpx.MockTransport(FakeServer()),
    )  # fmt: skip
    with pytest.raises(UserError, match="no model called `polisy`; did you mean `policy`"):
        sampler.update(0)


Reply = Callable[[FakeServer, dict[str, Any]], httpx.Response]


def always(response: httpx.Response) -> Reply:
    return lambda *_: response


def instead(**other: Any) -> Reply:
    return lambda _, body: httpx.Response(200, json={"choices": [choice(body, 0, **other), choice(body, 1)]})


@pytest.mark.parametrize(
    ("reply", "kind", "message", "tries"),
    [
        (instead(token_ids=None), UserError, "gives no token ids with log-probabilities", 1),
        (instead(logprobs=None), UserError, "gives no token ids with log-probabilities", 1),
        (instead(prompt_token_ids=[5]), ModelError, "answers another prompt than one", 1),
        (instead(token_ids=[3, 0, 1]), ModelError, "at token 1 because of `stop`", 1),
        (instead(finish_reason="length"), ModelError, "at token 6 because of `length`", 1),
        (instead(token_ids=[3, 0, 1], finish_reason="abort"), ModelError, "because of `abort`", 1),
        (always(httpx.Response(200, json={"choices": []})), ModelError, "0 answers to prompt one, not 2", 1),
        (always(refused(400, "maximum context length is 9 tokens")), UserError, "prompt one: .*; shorten it", 1),
        (always(refused(400, "Token id 9 is out of vocabulary")), UserError, "prompt one: .* out of vocabulary$", 1),
        (always(refused(500, "died")), ModelError, "HTTP 500: died", 8),
        (always(refused(401, "no")), ModelError, "HTTP 401: no; set the right API key", 1),
    ],
)
def test_what_is_no_answer_is_told(
    reply: Reply, kind: type[RlaifError], message: str, tries: int, tmp_path: Path
) -> None:
    fake = FakeServer(reply)
    with pytest.raises(kind, match=message):
        served(fake, tmp_path).sample(ASKED[:1], 2, 0)
    assert len(fake.bodies) == tries


def numbered(*indices: object) -> Reply:
    return lambda _, body: httpx.Response(200, json={"choices": [choice(body, 0) | {"index": at} for at in indices]})


def written(values: str) -> Reply:
    """JSON of which Python writes another one: NaN, and numbers beyond all floats."""

    def reply(_: FakeServer, body: dict[str, Any]) -> httpx.Response:
        text = json.dumps({"choices": [choice(body, 0), choice(body, 1)]}).replace("-2.0", values)
        return httpx.Response(200, content=text.encode())

    return reply


@pytest.mark.sibling("odd-rollouts")
@pytest.mark.parametrize(
    ("reply", "message"),
    [
        (numbered(0, 0), "not numbered from 0 on"),
        (numbered(1, 2), "not numbered from 0 on"),
        (numbered(0, None), "not numbered from 0 on"),
        (numbered(0, [1]), "not numbered from 0 on"),
        (numbered(0, 1, 2), "3 answers to prompt one, not 2"),
        (always(httpx.Response(200, json={"choices": {"0": 1}})), "0 answers to prompt one, not 2"),
        (written("NaN"), "no log-probabilities of tokens"),
        (written("-1e999"), "no log-probabilities of tokens"),
        (written("3.5"), "no log-probabilities of tokens"),
        (written('"-2"'), "gives no token ids with log-probabilities"),
        (instead(token_ids=[3, -1, 6]), "no log-probabilities of tokens"),
        (instead(token_ids=[3, True, 6]), "gives no token ids with log-probabilities"),
        (instead(logprobs=[]), "gives no token ids with log-probabilities"),
    ],
)
def test_odd_rollouts_are_never_learned_from(reply: Reply, message: str, tmp_path: Path) -> None:
    with pytest.raises(RlaifError, match=message):
        served(FakeServer(reply), tmp_path).sample(ASKED[:1], 2, 0)


def test_one_error_is_raised_for_many_questions(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="HTTP 401"):
        served(FakeServer(always(refused(401, "no"))), tmp_path).sample(ASKED, 2, 0)


def test_what_passes_is_asked_again(tmp_path: Path) -> None:
    def busy(fake: FakeServer, body: dict[str, Any]) -> httpx.Response | None:
        return httpx.Response(503, headers={"Retry-After": "0"}) if len(fake.bodies) <= 4 else None

    found = served(FakeServer(busy), tmp_path).sample(ASKED, 2, 0)
    assert len(found) == 6


def test_a_version_that_a_restarted_server_has_forgotten(tmp_path: Path) -> None:
    fake = FakeServer(lambda _, body: refused(404, f"The model `{body['model']}` does not exist."))
    with pytest.raises(ModelError, match=r"no longer has version 0 of the policy; was it started again\? Go on with"):
        served(fake, tmp_path).sample(ASKED, 1, 0)


def at(port: int, folder: Path, **options: Any) -> ServedSampler:
    settings: dict[str, Any] = {"max_tokens": 8, "ends": frozenset({6}), "tokenizer": letters(), "backoff": 0.001}
    return ServedSampler(f"http://127.0.0.1:{port}/v1", Adapters(saved, folder, "policy"), **settings | options)


def test_a_server_that_dies_of_a_question(tmp_path: Path) -> None:
    def gone(*_: Any) -> httpx.Response:
        raise httpx.ReadError("gone")

    with pytest.raises(ModelError, match=r"gone; start the server again \(on a CPU with --no-enable-chunked-prefill\)"):
        served(FakeServer(gone), tmp_path).sample(ASKED, 1, 0)


def test_a_lost_question_is_asked_once_more(tmp_path: Path) -> None:
    """A timeout has taken long already."""

    def late(*_: Any) -> httpx.Response:
        raise httpx.ReadTimeout("late")

    fake = FakeServer(late)
    with pytest.raises(ModelError, match="no reply within 300 s"):
        served(fake, tmp_path).sample(ASKED[:1], 1, 0)
    assert len(fake.bodies) == 2


def test_a_dead_and_a_silent_server(tmp_path: Path) -> None:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        port = one.getsockname()[1]
        with pytest.raises(ModelError, match=f"127.0.0.1:{port}/v1: connection refused; start the server, or"):
            at(port, tmp_path).update(0)
        one.listen()
        with pytest.raises(ModelError, match=r"no reply within 0.2 s; start the server, or"):
            at(port, tmp_path, timeout=0.2).update(0)


def test_being_in_step_by_hand() -> None:
    """Apart by 0.1, 0.2 and 0.6: 0.3 on average."""
    made = [
        Response(ASKED[0], at, [3] * len(logps), logps, "", False, 7) for at, logps in enumerate([[-1.0, -2.0], [-3.0]])
    ]
    own = [[-1.1, -1.8], [-3.6]]
    assert check_in_step(made, own, 0.31) == pytest.approx(0.3)
    with pytest.raises(
        ModelError, match=r"not those of version 7 of the policy: log-probabilities are off by 0.3 a tok"
    ):
        check_in_step(made, own, 0.29)
    with pytest.raises(ModelError, match="version 7"):
        check_in_step(made, [[-1.0, math.nan], [-3.0]], 1e9)
    with pytest.raises(ValueError, match="argument 2 is"):
        check_in_step(made, own[:1], 1.0)
    assert check_in_step([], [], 0.0) == 0.0


# On a real vLLM.

HEAT, RANK = 0.7, 8
DIGITS = 1e-4
"""Rounding alone makes 1e-6 of float32 on a CPU; an adapter of another version is off by 0.1 and more."""


class Policy:
    """A model with an adapter, as a training has it."""

    def __init__(self, folder: Path, rank: int = 4) -> None:
        from peft import LoraConfig, get_peft_model
        from transformers import AutoModelForCausalLM, AutoTokenizer

        self.tokenizer = AutoTokenizer.from_pretrained(folder)
        base = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
        config = LoraConfig(r=rank, lora_alpha=2 * rank, target_modules="all-linear", task_type="CAUSAL_LM")
        self.model: Any = get_peft_model(base, config).eval()

    def save(self, folder: Path) -> None:
        self.model.save_pretrained(folder)

    def learn(self, seed: int) -> None:
        """Other random weights of a size that shows."""
        torch.manual_seed(seed)
        with torch.no_grad():
            for weights in self.model.parameters():
                if weights.requires_grad:
                    weights.normal_(std=0.2)

    def logps(self, responses: list[Response], temperature: float = HEAT) -> list[list[float]]:
        return [self.logps_of(response, temperature) for response in responses]

    def logps_of(self, response: Response, temperature: float) -> list[float]:
        whole = [*response.prompt.ids, *response.ids]
        with torch.no_grad():
            logits = self.model(input_ids=torch.tensor([whole])).logits[0, len(response.prompt.ids) - 1 : -1]
        chances = (logits / temperature).log_softmax(-1)
        return [float(chances[place, token]) for place, token in enumerate(response.ids)]


def on(served: Served, policy: Policy, folder: Path, **options: Any) -> ServedSampler:
    settings: dict[str, Any] = {"max_tokens": 24, "ends": frozenset({END, 50, 60, 70}), "temperature": HEAT}
    settings |= options
    return ServedSampler(
        served.base_url, Adapters(policy.save, folder, None, folder_name="mine"), tokenizer=policy.tokenizer, **settings
    )


@pytest.mark.server
def test_after_every_update_the_servers_numbers_are_the_trainers(vllm_with_adapters: Served, tmp_path: Path) -> None:
    policy = Policy(vllm_with_adapters.folder)
    sampler = on(vllm_with_adapters, policy, tmp_path)
    for version in range(4):
        if version:
            policy.learn(version)
            sampler.update(version)
        found = sampler.sample(ASKED, 3, step=version)
        own = policy.logps(found)
        print(f"version {version}: off by {check_in_step(found, own, DIGITS):.1e} a token")
        assert [each.version for each in found] == [version] * 9
        assert max(map(apart, found, own)) < 10 * DIGITS
        assert all(sum(each.ids.count(end) for end in (END, 50, 60, 70)) == each.finished for each in found)
    assert len(list((tmp_path / "rlaif-mine").iterdir())) == 2
    sampler.close()


def apart(response: Response, own: list[float]) -> float:
    return max(abs(one - other) for one, other in zip(response.logps, own, strict=True))


@pytest.mark.server
def test_weights_that_were_left_behind_are_noticed(vllm_with_adapters: Served, tmp_path: Path) -> None:
    """The load of the second version is planted to fail unseen: the server is asked under the old name on and on."""
    policy = Policy(vllm_with_adapters.folder)
    policy.learn(1)
    sampler = on(vllm_with_adapters, policy, tmp_path)
    sampler.update(1)
    old = sampler._name
    policy.learn(2)
    sampler.update(2)
    found = sampler.sample(ASKED, 3, step=0)
    check_in_step(found, policy.logps(found), DIGITS)
    sampler._name = old
    found = sampler.sample(ASKED, 3, step=0)
    with pytest.raises(ModelError, match="the answers are not those of version 2 of the policy"):
        check_in_step(found, policy.logps(found), 0.1)
    sampler.close()


@pytest.mark.server
def test_greedy_answers_are_those_drawn_in_process(
    vllm_with_adapters: Served, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The most probable token each time: by the server at temperature 0, here as all that a tiny `top_p` leaves."""
    policy = Policy(vllm_with_adapters.folder)
    policy.learn(3)
    options: dict[str, Any] = {"max_tokens": 24, "ends": frozenset({END, 50, 60, 70})}
    here = LocalSampler(policy.model, policy.tokenizer, top_p=1e-9, **options).sample(ASKED, 1, 0)

    async def fine(*_: object) -> None:
        """No training asks for temperature 0, and its log-probabilities are those of 1."""

    monkeypatch.setattr(ServedSampler, "_require_numbers", fine)
    sampler = on(vllm_with_adapters, policy, tmp_path, temperature=0.0, **options)
    there = sampler.sample(ASKED, 1, 0)
    sampler.close()
    assert [(each.ids, each.text, each.finished) for each in there] == [
        (each.ids, each.text, each.finished) for each in here
    ]
    check_in_step(there, [each.logps for each in here], DIGITS)


@pytest.mark.server
def test_answers_repeat_and_differ_by_step_and_index(vllm_with_adapters: Served, tmp_path: Path) -> None:
    policy = Policy(vllm_with_adapters.folder)
    sampler = on(vllm_with_adapters, policy, tmp_path, ends=frozenset({END}))
    first, again, other = (sampler.sample(ASKED, 3, step) for step in (0, 0, 1))
    sampler.close()
    assert [each.ids for each in first] == [each.ids for each in again]
    assert len({tuple(each.ids) for each in [*first, *other]}) == 18


@pytest.mark.server
def test_more_prompts_than_the_server_reads_at_once(vllm_with_adapters: Served, tmp_path: Path) -> None:
    policy = Policy(vllm_with_adapters.folder)
    drawn = torch.Generator().manual_seed(0)
    many = [TokenizedPrompt(f"p{at}", (), torch.randint(3, 400, (60,), generator=drawn).tolist()) for at in range(100)]
    sampler = on(vllm_with_adapters, policy, tmp_path, max_tokens=3, concurrency=100)
    found = sampler.sample(many, 2, 0)
    sampler.close()
    assert [(each.prompt.id, each.index) for each in found] == [(one.id, at) for one in many for at in range(2)]
    check_in_step(found, policy.logps(found), DIGITS)


@pytest.mark.server
def test_ends_end_an_answer_and_stay_in_it(vllm_with_adapters: Served, tmp_path: Path) -> None:
    """Also such that the model's config does not know, and not those that only the config knows."""
    policy = Policy(vllm_with_adapters.folder)
    free = on(vllm_with_adapters, policy, tmp_path, ends=frozenset()).sample(ASKED, 3, 0)
    assert {(each.finished, len(each.ids)) for each in free} == {(False, 24)}
    ends = frozenset({free[0].ids[4], free[5].ids[9]})
    found = on(vllm_with_adapters, policy, tmp_path, ends=ends).sample(ASKED, 3, 0)
    for one, whole in zip(found, free, strict=True):
        stop = next((place + 1 for place, token in enumerate(whole.ids) if token in ends), None)
        assert (one.ids, one.finished) == (whole.ids[:stop], stop is not None)
        assert one.logps == pytest.approx(whole.logps[:stop], abs=DIGITS)
    assert {each.finished for each in found} == {True, False}


@pytest.mark.server
def test_the_context_bounds_prompt_and_answer(vllm_with_adapters: Served, tmp_path: Path) -> None:
    policy = Policy(vllm_with_adapters.folder)
    sampler = on(vllm_with_adapters, policy, tmp_path, ends=frozenset({END}))
    (found,) = sampler.sample([TokenizedPrompt("long", (), [5] * 509)], 1, 0)
    assert (len(found.ids), found.finished) == (3, False)
    with pytest.raises(
        UserError, match="prompt much: 512 tokens leave no room for an answer in the server's context of 512; start"
    ):
        sampler.sample([ASKED[0], TokenizedPrompt("much", (), [5] * 512)], 1, 0)


@pytest.mark.server
def test_adapters_that_the_server_does_not_take(vllm_with_adapters: Served, tmp_path: Path) -> None:
    big = Policy(vllm_with_adapters.folder, rank=16)
    with pytest.raises(UserError, match="takes no adapter of rank 16; start it with --max-lora-rank 16"):
        on(vllm_with_adapters, big, tmp_path).update(0)
    big.save = lambda folder: None  # type: ignore[method-assign]
    with pytest.raises(UserError, match=r"does not find .*/rlaif-[0-9a-z]*/v0-[0-9a-f]*; run it on this machine"):
        on(vllm_with_adapters, big, tmp_path).update(0)


@pytest.mark.server
def test_log_probabilities_must_be_those_of_the_draw(vllm_with_adapters: Served, vllm: Served, tmp_path: Path) -> None:
    """One server reports what it draws from, the other the model's own; and that takes no adapters while it runs."""
    policy = Policy(vllm_with_adapters.folder)
    with pytest.raises(UserError, match="of what `top_p` leaves, not of the whole distribution; start it without"):
        on(vllm_with_adapters, policy, tmp_path, top_p=0.9).update(0)
    for heat in (0.7, 1.05, 2.0):
        on(vllm_with_adapters, policy, tmp_path, temperature=heat).update(0)
        with pytest.raises(
            UserError, match=f"of temperature 1, not of {heat:g}; start it with --logprobs-mode processed"
        ):
            on(vllm, policy, tmp_path, temperature=heat).update(0)
    for options in ({"temperature": 1.0}, {"temperature": 1.0, "top_p": 0.9}):
        with pytest.raises(UserError, match="takes no adapters while it runs; start it with VLLM_ALLOW_RUNTIME"):
            on(vllm, policy, tmp_path, **options).update(0)


@pytest.mark.server
def test_a_version_taken_from_the_server_is_missed(vllm_with_adapters: Served, tmp_path: Path) -> None:
    sampler = on(vllm_with_adapters, Policy(vllm_with_adapters.folder), tmp_path)
    sampler.update(4)
    name = sampler._name
    sampler.close()
    sampler._name = name
    with pytest.raises(ModelError, match="no longer has version 4 of the policy; was it started again"):
        sampler.sample(ASKED, 1, 0)
