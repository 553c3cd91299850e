"""Which models a server has, for those who name only the server."""

from __future__ import annotations

from rlaif.errors import ModelError, UserError
from rlaif.inference.faults import Fault
from rlaif.inference.http import wire_to
from rlaif.inference.talk import Talk, address_of

_SECONDS = 10.0


async def only_model(base_url: str, api_key: str | None = None) -> str:
    """The one model that a server lists. Raises UserError where there are several or none, ModelError without a server.

    `base_url` is that of the API, for instance http://127.0.0.1:8000/v1.
    """
    address = address_of(base_url, api_key)
    talk = Talk(address, wire_to(address.url, address.headers))
    try:
        reply = await talk.get("/models", timeout=_SECONDS)
    finally:
        await talk.close()
    if isinstance(reply, Fault):
        if reply.kind in ("refused", "dropped", "timeout"):
            raise ModelError(f"{talk.shown}: not reachable ({reply.detail})")
        raise UserError(f"cannot tell its models: {reply.detail}", where=talk.shown, mend="name the model")
    listed = reply.get("data")
    names = [
        str(card["id"])
        for card in (listed if isinstance(listed, list) else ())
        if isinstance(card, dict) and "id" in card
    ]
    if len(names) != 1:
        told = f"lists {len(names)} models" + (f": {talk.hide(', '.join(names[:10]))}" if names else "")
        raise UserError(told, where=talk.shown, mend="name the one that is meant")
    return names[0]
