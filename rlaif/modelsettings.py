"""The settings of one model: which, where it runs, and how it is reached."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal

from pydantic import Field, JsonValue, field_validator, model_validator

from rlaif.addresses import SECRET_IN_URL, secret_in
from rlaif.records import Record


class ModelSettings(Record):
    """A model, and where it runs: in process, on a server, or on a vLLM server started for the run."""

    model: str = Field(min_length=1)
    """Name on the server; without `base_url` or `launch`, a local folder, a hub name, or a shipped model."""
    base_url: str | None = None
    """OpenAI-compatible server, for instance http://127.0.0.1:8000/v1; none runs the model in process. ${NAME} in it
    stands for what the environment variable NAME holds."""
    api_key_env: str | None = None
    """Name of the environment variable that holds the API key; with `launch`, the one that the server then wants."""
    launch: Literal["vllm"] | None = None
    """Start `vllm serve` for this run, and stop it afterwards."""
    launch_args: tuple[str, ...] = ()
    """More arguments for the launched server."""
    concurrency: int = Field(128, ge=1)
    """Most questions under way at once; fewer while the server pushes back."""
    timeout: float = Field(120.0, gt=0)
    """Seconds until a request counts as lost."""
    template_options: dict[str, JsonValue] = Field(default_factory=dict)
    """Passed to the chat template, for instance {enable_thinking: false}."""
    device: str = "auto"
    """For a model in process: auto, cpu, cuda, cuda:1, ..."""

    @model_validator(mode="after")
    def _one_place(self) -> ModelSettings:
        served = self.base_url is not None or self.launch is not None
        for wrong, what in (
            (self.base_url and self.launch, "`base_url` and `launch` exclude each other: remove one of them"),
            (self.launch_args and not self.launch, "`launch_args` go with `launch: vllm`: set it, or remove them"),
            (served and self.device != "auto", "`device` is for a model in process, and this one is served: remove it"),
        ):
            if wrong:
                raise ValueError(what)
        return self

    @field_validator("launch_args")
    @classmethod
    def _not_ours(cls, arguments: tuple[str, ...]) -> tuple[str, ...]:
        if (flag := placing(arguments)) is not None:
            raise ValueError(f"must not hold {flag}: where the server is asked, and by which name, is the run's to say")
        if (flag := _first_of(arguments, ("--api-key", "--hf-token"))) is not None:
            raise ValueError(
                f"must not hold {flag}: everybody can read the arguments of a process; "
                "name a variable that holds the server's key in `api_key_env`, and set HF_TOKEN for the hub"
            )
        return arguments

    @field_validator("base_url")
    @classmethod
    def _is_url(cls, url: str | None) -> str | None:
        if url is not None and not url.startswith(("http://", "https://", "${")):
            raise ValueError("must start with http:// or https://")
        return without_secret(url)


def without_secret(url: str | None) -> str | None:
    """The address of a server. Raises ValueError where it holds a secret: settings are saved, shown and passed on."""
    secret = None if url is None else secret_in(url)
    if secret is not None:
        raise ValueError(f"holds {secret}, and settings are stored with every run: {SECRET_IN_URL}")
    return url


def placing(arguments: Iterable[str]) -> str | None:
    """The first of a launched server's arguments that would move or rename it, unknown to those who ask it."""
    return _first_of(arguments, ("--host", "--port", "--served-model-name"))


def _first_of(arguments: Iterable[str], wanted: tuple[str, ...]) -> str | None:
    flags = (argument.partition("=")[0].replace("_", "-") for argument in arguments)
    return next((flag for flag in flags if flag in wanted), None)
