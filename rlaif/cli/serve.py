"""`rlaif judge serve`: vLLM with the flags that judging needs."""

from __future__ import annotations

import click

from rlaif.cli.terminal import echo


@click.group()
def judge() -> None:
    """Serve a judge model."""


@judge.command(context_settings={"ignore_unknown_options": True})
@click.argument("model")
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to bind; only this machine by default.")
@click.option("--port", default=8000, show_default=True, type=click.IntRange(1, 65535), help="Port to bind.")
@click.option("--name", help="Name that requests ask for; by default MODEL.")
@click.argument("extra", nargs=-1, type=click.UNPROCESSED)
def serve(model: str, host: str, port: int, name: str | None, extra: tuple[str, ...]) -> None:
    """Serve MODEL with vLLM until Ctrl-C: prefix caching on, cached tokens reported.

    MODEL is a hub name, a folder, or a shipped model (demo-judge). Arguments after `--` go to `vllm serve`:

    rlaif judge serve Qwen/Qwen3-8B -- --tensor-parallel-size 2
    """
    from rlaif.inference.vllm_process import serve_foreground

    code = serve_foreground(model, host=host, port=port, served_name=name, extra=extra, say=echo)
    raise SystemExit(code)
