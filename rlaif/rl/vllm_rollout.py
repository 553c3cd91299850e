"""Answers drawn on a vLLM server, whose weights follow the training: adapters or whole ones, loaded while it runs.

A server is asked for answers to prompts of token ids, and gives token ids back: no text is ever split into tokens
again, which would not always give the tokens that were drawn.

Its numbers are not the training's to the last digit: other kernels, another order of additions, often another type.
`check_in_step` tells such noise from weights that were left behind (huggingface/trl#5312).
"""

from __future__ import annotations

import asyncio
import hashlib
import math
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

from rlaif.errors import ModelError, UserError
from rlaif.inference.background import blocking
from rlaif.inference.faults import Fault
from rlaif.inference.requests import ServerConnection, address_of
from rlaif.inference.transport import open_transport
from rlaif.rl.remote_reward import RetryingClient
from rlaif.rl.responses import Response, TokenizedPrompt
from rlaif.rl.weight_sync import Carrier

if TYPE_CHECKING:
    import httpx

T = TypeVar("T")

_PLAIN = {
    "top_p": 1.0, "top_k": 0, "min_p": 0.0, "return_tokens_as_token_ids": True,
    "repetition_penalty": 1.0, "presence_penalty": 0.0, "frequency_penalty": 0.0,
}  # fmt: skip
"""Sent with every question: where it is silent, the server's own defaults would act."""
_PROBE, _TOP = list(range(1, 9)), 5
"""Tokens that every model has, and how many it tells that could follow them."""
_NARROW = 0.01
"""A `top_p` that leaves one token."""
_MOST = 0.1
"""Of a log-probability: 0 but for rounding."""


class ServedSampler:
    """A `Sampler` on a running vLLM server; what it has to be started with depends on how it gets the weights: see
    `rlaif.rl.weight_sync` and `rlaif.rl.weight_sync`.

    The log-probabilities are those of the whole distribution at the sampling temperature. vLLM reports those of
    temperature 1 before `top_p`, or with `--logprobs-mode processed_logprobs` those of the sampling temperature after
    `top_p`. So another temperature needs that mode, and `top_p` the other one: the first `update` asks the server which
    it is.

    A server on a CPU has to run with --no-enable-chunked-prefill: vLLM 0.32 ends there when it reads a prompt in parts
    whose answer has a seed. Not to be used where an event loop runs already.
    """

    def __init__(
        self,
        base_url: str,
        carrier: Carrier,
        *,
        tokenizer: Any,
        max_tokens: int,
        ends: frozenset[int],
        temperature: float = 1.0,
        top_p: float = 1.0,
        seed: int = 0,
        concurrency: int = 64,
        timeout: float = 300.0,
        backoff: float = 0.5,
        api_key: str | None = None,
        transport: httpx.AsyncBaseTransport | None = None,
    ) -> None:
        """`carrier` brings the policy's weights to the server. `ends` are the tokens that end an answer, and the only
        ones: they stay in its ids, not in its text. `concurrency` bounds the prompts under way, `timeout` the seconds
        of one request; `transport` takes the network's place in tests.
        """
        address = address_of(base_url, api_key)
        self._talk = ServerConnection(address, open_transport(address.url, address.headers, transport))
        self._tokenizer, self._ends, self._max_tokens, self._seed = tokenizer, ends, max_tokens, seed
        self._temperature, self._top_p = temperature, top_p
        self._concurrency, self._timeout, self._backoff = concurrency, timeout, backoff
        self._carrier = carrier
        self._version, self._name = 0, ""
        self._context: int | None = None

    def sample(self, asked: Sequence[TokenizedPrompt], each: int, step: int) -> list[Response]:
        """`each` answers to every prompt, those to one prompt next to each other; the noise depends on `step`.

        Before the first `update`, the weights are taken up as version 0. Raises UserError for a prompt that is too long
        and for a server that is not set up for this, ModelError where it cannot go on.
        """
        if not self._name:
            self.update(0)
        for one in asked:
            self._require_room(one)

        async def work(line: RetryingClient) -> list[Response]:
            async with asyncio.TaskGroup() as group:
                tasks = [group.create_task(self._answers(line, one, each, step)) for one in asked]
            return [response for task in tasks for response in task.result()]

        return self._run(work)

    def update(self, version: int) -> None:
        """Bring the weights to the server as they are now.

        Raises UserError for a server that is not set up for this, ModelError where there is none.
        """

        async def work(line: RetryingClient) -> str:
            if not self._name:
                model, self._context = await self._carrier.begin(line)
                await self._require_numbers(line, model)
            return await self._carrier.load(line, version)

        self._name, self._version = self._run(work), version

    def close(self) -> None:
        """Leave the server as it was."""
        self._run(self._carrier.end)

    def _require_room(self, asked: TokenizedPrompt) -> None:
        if self._context is not None and len(asked.ids) >= self._context:
            what = f"{len(asked.ids)} tokens leave no room for an answer in the server's context of {self._context}"
            hint = "start the server with a larger --max-model-len, or leave it out with `max_prompt`"
            raise UserError(what, where=f"prompt {asked.id}", hint=hint)

    def _run(self, work: Callable[[RetryingClient], Awaitable[T]]) -> T:
        """Do some work in an event loop of its own. Of several errors, the first is raised."""

        async def main() -> T:
            line = RetryingClient(
                self._talk, concurrency=self._concurrency, timeout=self._timeout, backoff=self._backoff
            )
            try:
                return await work(line)
            finally:
                await line.close()

        try:
            return blocking(main())
        except ExceptionGroup as errors:
            raise errors.exceptions[0] from None

    async def _answers(self, line: RetryingClient, asked: TokenizedPrompt, each: int, step: int) -> list[Response]:
        body: dict[str, Any] = {
            **_PLAIN,
            "model": self._name,
            "prompt": list(asked.ids),
            "n": each,
            "max_tokens": self._max_tokens,
            "temperature": self._temperature,
            "top_p": self._top_p,
            "seed": seed_of(self._seed, step, asked.id),
            "stop_token_ids": sorted(self._ends),
            "ignore_eos": True,  # of the ends, the server may know others
            "logprobs": 0,
            "return_token_ids": True,
        }
        reply = await line.post("/completions", body)
        if isinstance(reply, Fault):
            raise self._failure(line, reply, asked)
        choices = _in_order(reply.get("choices"))
        if choices is None or len(choices) != each:
            many = "answers that are not numbered from 0 on" if choices is None else f"{len(choices)} answers"
            raise ModelError(f"{line.shown}: {many} to prompt {asked.id}, not {each}")
        found = [self._read(line, asked, choice) for choice in choices]
        return [self._response(asked, index, *answer) for index, answer in enumerate(found)]

    def _read(
        self, line: RetryingClient, asked: TokenizedPrompt, choice: Mapping[str, Any]
    ) -> tuple[list[int], list[float]]:
        """Ids and log-probabilities of one answer, checked."""
        values = choice.get("logprobs")
        ids = _numbers(choice.get("token_ids"), int)
        logps = _numbers(values.get("token_logprobs") if isinstance(values, dict) else None, int | float)
        if not ids or len(ids) != len(logps):
            what = "gives no token ids with log-probabilities"
            raise UserError(what, where=line.shown, hint="serve the policy with vLLM 0.20 or newer")
        if min(ids) < 0 or not all(math.isfinite(logp) and logp <= _MOST for logp in logps):
            raise ModelError(f"{line.shown}: numbers that are no log-probabilities of tokens, to prompt {asked.id}")
        if choice.get("prompt_token_ids") != list(asked.ids):
            raise ModelError(f"{line.shown}: answers another prompt than {asked.id}, which was {len(asked.ids)} tokens")
        reason = choice.get("finish_reason")
        if (reason == "length") == (ids[-1] in self._ends):
            raise ModelError(
                f"{line.shown}: ended an answer to prompt {asked.id} at token {ids[-1]} because of `{reason}`"
            )
        return ids, logps

    def _response(self, asked: TokenizedPrompt, index: int, ids: list[int], logps: list[float]) -> Response:
        finished = ids[-1] in self._ends
        text = self._tokenizer.decode(ids[:-1] if finished else ids, skip_special_tokens=True)
        return Response(asked, index, ids, logps, text, finished, self._version)

    def _failure(self, line: RetryingClient, fault: Fault, asked: TokenizedPrompt) -> Exception:
        if fault.kind in ("too_long", "bad_request"):
            hint = "shorten it, or leave it out" if fault.kind == "too_long" else ""
            return UserError(fault.detail, where=f"prompt {asked.id}", hint=hint)
        if fault.kind == "http_404" and self._name in fault.detail:
            what = f"{line.shown}: no longer has version {self._version} of the policy; was it started again?"
            return ModelError(f"{what} Go on with `--resume`")
        return line.failure(fault, " (on a CPU with --no-enable-chunked-prefill)")

    async def _require_numbers(self, line: RetryingClient, model: str) -> None:
        """Raise UserError unless log-probabilities come at the sampling temperature, and before `top_p`."""
        heat = self._temperature
        if heat != 1:
            cold, hot = await self._tops(line, model, 1.0, 1.0), await self._tops(line, model, heat, 1.0)
            both = sorted(cold.keys() & hot.keys(), key=lambda token: cold[token])
            gap, there = (each[both[-1]] - each[both[0]] if both else 0.0 for each in (cold, hot))
            # A temperature divides the difference between two log-probabilities.
            if abs(there - gap / heat) >= abs(there - gap):
                what = f"reports log-probabilities of temperature 1, not of {heat:g}"
                hint = "start it with --logprobs-mode processed_logprobs, or sample with `temperature: 1`"
                raise UserError(what, where=line.shown, hint=hint)
        if self._top_p < 1:
            wide, narrow = await self._tops(line, model, heat, 1.0), await self._tops(line, model, heat, _NARROW)
            if max(narrow.values()) > max(wide.values()) / 2:  # alone, the first token has the log-probability 0
                what = "reports log-probabilities of what `top_p` leaves, not of the whole distribution"
                hint = "start it without --logprobs-mode, or sample with `top_p: 1`"
                raise UserError(what, where=line.shown, hint=hint)

    async def _tops(self, line: RetryingClient, model: str, temperature: float, top_p: float) -> dict[str, float]:
        """The most probable tokens after some prompt, and their log-probabilities."""
        asked = {"prompt": _PROBE, "max_tokens": 1, "temperature": temperature, "top_p": top_p}
        reply = await line.post("/completions", {**_PLAIN, **asked, "model": model, "logprobs": _TOP, "seed": 0})
        if isinstance(reply, Fault):
            raise line.failure(reply)
        try:
            listed = reply["choices"][0]["logprobs"]["top_logprobs"][0]
            found = {str(token): float(logp) for token, logp in listed.items()}
        except (KeyError, IndexError, TypeError, ValueError, AttributeError):
            found = {}
        if not found or not all(map(math.isfinite, found.values())):
            what = "reports no log-probabilities"
            raise UserError(what, where=line.shown, hint="serve the policy with vLLM")
        return found


def _in_order(choices: object) -> list[dict[str, Any]] | None:
    """The choices by their index; None where they are not numbered 0, 1, 2, ...: nobody knows then which is which."""
    listed = [each for each in choices if isinstance(each, dict)] if isinstance(choices, list) else []
    numbered = {each["index"]: each for each in listed if _numbers([each.get("index")], int)}
    if len(numbered) != len(listed) or numbered.keys() != set(range(len(listed))):
        return None
    return [numbered[at] for at in range(len(listed))]


def _numbers(values: object, kind: Any) -> list[Any]:
    """A list of numbers of a kind; empty where it is none, or one of the values is another thing (or true or false)."""
    if not isinstance(values, list):
        return []
    return values if all(isinstance(each, kind) and not isinstance(each, bool) for each in values) else []


def seed_of(seed: int, step: int, prompt: str) -> int:
    """The server's seed for the answers to one prompt; it counts up from there for the second, the third, ..."""
    digest = hashlib.sha256(f"{seed}:{step}:{prompt}".encode("utf-8", "surrogatepass")).digest()
    return int.from_bytes(digest[:8], "big") >> 2
