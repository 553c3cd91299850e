"""Rollout on a vLLM server, whose weights follow the training: adapters or whole ones, loaded while it runs.

Prompts go out as token ids, and responses come back as token ids: no text is tokenized again, which would not always
give the sampled tokens.

The server's log-probabilities differ from the trainer's in the last digits: other kernels, another order of additions,
often another type. `check_in_step` tells such noise from stale weights (huggingface/trl#5312).
"""

from __future__ import annotations

import asyncio
import hashlib
import math
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

from rlaif.errors import ModelError, UserError
from rlaif.inference.base import blocking
from rlaif.inference.faults import Fault
from rlaif.inference.requests import ServerConnection, address_of
from rlaif.inference.transport import open_transport
from rlaif.rl.experience import Response, TokenizedPrompt
from rlaif.rl.weight_sync import Carrier, RetryingClient

if TYPE_CHECKING:
    import httpx

T = TypeVar("T")

_DEFAULTS = {
    "top_p": 1.0, "top_k": 0, "min_p": 0.0, "return_tokens_as_token_ids": True,
    "repetition_penalty": 1.0, "presence_penalty": 0.0, "frequency_penalty": 0.0,
}  # fmt: skip
"""Sent with every request, as the server's own defaults would hold otherwise."""
_PROBE, _TOP = list(range(1, 9)), 5
"""A prompt of tokens that every model has, and the number of most probable next tokens to report."""
_TOP_P_ONE = 0.01
"""A `top_p` that leaves one token."""
_MAX_LOGP = 0.1
"""0 but for rounding."""


class ServedSampler:
    """A `Sampler` on a running vLLM server; the options to start it with depend on its carrier of weights: see
    `rlaif.rl.weight_sync`.

    The log-probabilities are those of the whole distribution at the sampling temperature. vLLM reports those of
    temperature 1 before `top_p`, or with `--logprobs-mode processed_logprobs` those of the sampling temperature after
    `top_p`. So another temperature needs that mode, and `top_p` the other one: the first `update` asks the server which
    it is.

    A server on a CPU has to run with --no-enable-chunked-prefill: vLLM 0.32 ends there when it reads a prompt in parts
    whose answer has a seed. Call it only where no event loop runs.
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
        """`carrier` brings the policy's weights to the server. `ends` are the only tokens that end a response; they
        stay in its ids, not in its text. `concurrency` bounds the prompts under way, `timeout` the seconds of one
        request; `transport` takes the network's place in tests.
        """
        address = address_of(base_url, api_key)
        self._connection = ServerConnection(address, open_transport(address.url, address.headers, transport))
        self._tokenizer, self._ends, self._max_tokens, self._seed = tokenizer, ends, max_tokens, seed
        self._temperature, self._top_p = temperature, top_p
        self._concurrency, self._timeout, self._backoff = concurrency, timeout, backoff
        self._carrier = carrier
        self._version, self._name = 0, ""
        self._context: int | None = None

    def sample(self, prompts: Sequence[TokenizedPrompt], samples: int, step: int) -> list[Response]:
        """`samples` responses to every prompt, those to one prompt adjacent; the noise depends on `step`.

        The first call sends the weights as version 0, unless `update` did. Raises UserError for a prompt that is too
        long and for a server that is not set up for this, ModelError where it cannot go on.
        """
        if not self._name:
            self.update(0)
        for prompt in prompts:
            if self._context is not None and len(prompt.ids) >= self._context:
                what = (
                    f"{len(prompt.ids)} tokens leave no room for an answer in the server's context of {self._context}"
                )
                hint = "start the server with a larger --max-model-len, or leave it out with `max_prompt`"
                raise UserError(what, where=f"prompt {prompt.id}", hint=hint)

        async def work(client: RetryingClient) -> list[Response]:
            async with asyncio.TaskGroup() as group:
                tasks = [group.create_task(self._sample_one(client, prompt, samples, step)) for prompt in prompts]
            return [response for task in tasks for response in task.result()]

        return self._run(work)

    def update(self, version: int) -> None:
        """Send the current weights to the server.

        Raises UserError for a server that is not set up for this, ModelError where there is none.
        """

        async def work(client: RetryingClient) -> str:
            if not self._name:
                model, self._context = await self._carrier.begin(client)
                await self._require_numbers(client, model)
            return await self._carrier.load(client, version)

        self._name, self._version = self._run(work), version

    def close(self) -> None:
        """Leave the server as it was."""
        self._run(self._carrier.end)

    def _run(self, work: Callable[[RetryingClient], Awaitable[T]]) -> T:
        """Run a coroutine with a client in an event loop of its own. Of several errors, raises the first."""

        async def main() -> T:
            client = RetryingClient(
                self._connection, concurrency=self._concurrency, timeout=self._timeout, backoff=self._backoff
            )
            try:
                return await work(client)
            finally:
                await client.close()

        try:
            return blocking(main())
        except ExceptionGroup as errors:
            raise errors.exceptions[0] from None

    async def _sample_one(
        self, client: RetryingClient, prompt: TokenizedPrompt, samples: int, step: int
    ) -> list[Response]:
        body: dict[str, Any] = {
            **_DEFAULTS,
            "model": self._name,
            "prompt": list(prompt.ids),
            "n": samples,
            "max_tokens": self._max_tokens,
            "temperature": self._temperature,
            "top_p": self._top_p,
            "seed": seed_of(self._seed, step, prompt.id),
            "stop_token_ids": sorted(self._ends),
            "ignore_eos": True,  # the server may have other ends
            "logprobs": 0,
            "return_token_ids": True,
        }
        reply = await client.post("/completions", body)
        if isinstance(reply, Fault):
            raise self._failure(client, reply, prompt)
        choices = _in_order(reply.get("choices"))
        if choices is None or len(choices) != samples:
            many = "answers that are not numbered from 0 on" if choices is None else f"{len(choices)} answers"
            raise ModelError(f"{client.shown}: {many} to prompt {prompt.id}, not {samples}")
        responses = []
        for index, (ids, logps) in enumerate([self._parse_choice(client, prompt, choice) for choice in choices]):
            finished = ids[-1] in self._ends
            text = self._tokenizer.decode(ids[:-1] if finished else ids, skip_special_tokens=True)
            responses.append(Response(prompt, index, ids, logps, text, finished, self._version))
        return responses

    def _parse_choice(
        self, client: RetryingClient, prompt: TokenizedPrompt, choice: Mapping[str, Any]
    ) -> tuple[list[int], list[float]]:
        """Ids and log-probabilities of one response, checked."""
        values = choice.get("logprobs")
        ids = _numbers(choice.get("token_ids"), int)
        logps = _numbers(values.get("token_logprobs") if isinstance(values, dict) else None, int | float)
        if not ids or len(ids) != len(logps):
            what = "gives no token ids with log-probabilities"
            raise UserError(what, where=client.shown, hint="serve the policy with vLLM 0.20 or newer")
        if min(ids) < 0 or not all(math.isfinite(logp) and logp <= _MAX_LOGP for logp in logps):
            raise ModelError(f"{client.shown}: numbers that are no log-probabilities of tokens, to prompt {prompt.id}")
        if choice.get("prompt_token_ids") != list(prompt.ids):
            raise ModelError(
                f"{client.shown}: answers another prompt than {prompt.id}, which was {len(prompt.ids)} tokens"
            )
        reason = choice.get("finish_reason")
        if (reason == "length") == (ids[-1] in self._ends):
            raise ModelError(
                f"{client.shown}: ended an answer to prompt {prompt.id} at token {ids[-1]} because of `{reason}`"
            )
        return ids, logps

    def _failure(self, client: RetryingClient, fault: Fault, prompt: TokenizedPrompt) -> Exception:
        if fault.kind in ("too_long", "bad_request"):
            hint = "shorten it, or leave it out" if fault.kind == "too_long" else ""
            return UserError(fault.detail, where=f"prompt {prompt.id}", hint=hint)
        if fault.kind == "http_404" and self._name in fault.detail:
            what = f"{client.shown}: no longer has version {self._version} of the policy; was it started again?"
            return ModelError(f"{what} Go on with `--resume`")
        return client.failure(fault, " (on a CPU with --no-enable-chunked-prefill)")

    async def _require_numbers(self, client: RetryingClient, model: str) -> None:
        """Raise UserError unless log-probabilities come at the sampling temperature, and before `top_p`."""
        temperature = self._temperature
        if temperature != 1:
            cold, hot = (
                await self._top_logps(client, model, 1.0, 1.0),
                await self._top_logps(client, model, temperature, 1.0),
            )
            both = sorted(cold.keys() & hot.keys(), key=lambda token: cold[token])
            gap, hot_gap = (logps[both[-1]] - logps[both[0]] if both else 0.0 for logps in (cold, hot))
            # A temperature divides the difference between two log-probabilities.
            if abs(hot_gap - gap / temperature) >= abs(hot_gap - gap):
                what = f"reports log-probabilities of temperature 1, not of {temperature:g}"
                hint = "start it with --logprobs-mode processed_logprobs, or sample with `temperature: 1`"
                raise UserError(what, where=client.shown, hint=hint)
        if self._top_p < 1:
            wide, narrow = (
                await self._top_logps(client, model, temperature, 1.0),
                await self._top_logps(client, model, temperature, _TOP_P_ONE),
            )
            if max(narrow.values()) > max(wide.values()) / 2:  # alone, the first token has the log-probability 0
                what = "reports log-probabilities of what `top_p` leaves, not of the whole distribution"
                hint = "start it without --logprobs-mode, or sample with `top_p: 1`"
                raise UserError(what, where=client.shown, hint=hint)

    async def _top_logps(
        self, client: RetryingClient, model: str, temperature: float, top_p: float
    ) -> dict[str, float]:
        """The most probable tokens after the probe, and their log-probabilities."""
        request = {"prompt": _PROBE, "max_tokens": 1, "temperature": temperature, "top_p": top_p}
        reply = await client.post("/completions", {**_DEFAULTS, **request, "model": model, "logprobs": _TOP, "seed": 0})
        if isinstance(reply, Fault):
            raise client.failure(reply)
        try:
            top = reply["choices"][0]["logprobs"]["top_logprobs"][0]
            logps = {str(token): float(logp) for token, logp in top.items()}
        except (KeyError, IndexError, TypeError, ValueError, AttributeError):
            logps = {}
        if not logps or not all(map(math.isfinite, logps.values())):
            what = "reports no log-probabilities"
            raise UserError(what, where=client.shown, hint="serve the policy with vLLM")
        return logps


def _in_order(choices: object) -> list[dict[str, Any]] | None:
    """The choices by their index; None where they are not numbered 0, 1, 2, ..., and their order is unknown."""
    rows = [choice for choice in choices if isinstance(choice, dict)] if isinstance(choices, list) else []
    numbered = {row["index"]: row for row in rows if _numbers([row.get("index")], int)}
    if len(numbered) != len(rows) or numbered.keys() != set(range(len(rows))):
        return None
    return [numbered[at] for at in range(len(rows))]


def _numbers(values: object, kind: Any) -> list[Any]:
    """A list of numbers of a kind; empty where it is no list, or a value is of another kind (as true and false are)."""
    if not isinstance(values, list):
        return []
    return values if all(isinstance(value, kind) and not isinstance(value, bool) for value in values) else []


def seed_of(seed: int, step: int, prompt: str) -> int:
    """The server's seed for the first response to a prompt; it counts up from there for the others."""
    digest = hashlib.sha256(f"{seed}:{step}:{prompt}".encode("utf-8", "surrogatepass")).digest()
    return int.from_bytes(digest[:8], "big") >> 2
