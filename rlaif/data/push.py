"""A dataset folder to the Hugging Face hub, by its own client and with its own token (`hf auth login`, or HF_TOKEN)."""

from __future__ import annotations

import contextlib
import importlib
from pathlib import Path

from rlaif.errors import ModelError, UserError
from rlaif.inference.proxies import hub_client


def push(folder: Path, name: str, *, public: bool = False) -> str:
    """Upload `folder` to the dataset `name` (owner/name), which is made if need be, private unless `public`.

    Returns its address. Raises UserError where the hub refuses, ModelError where it cannot be reached.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, OfflineModeIsEnabled

    api = HfApi()
    try:
        with hub_client():
            address = api.create_repo(name, repo_type="dataset", private=not public, exist_ok=True)
            api.upload_folder(repo_id=name, folder_path=folder, repo_type="dataset", commit_message="Upload by rlaif")
    except HFValidationError as error:
        raise UserError(f"no name of a dataset: {_first_line(error)}", where=name, mend="write owner/name") from None
    except OfflineModeIsEnabled:
        raise UserError("HF_HUB_OFFLINE is set", where=name, mend="unset it to push") from None
    except HfHubHTTPError as error:
        status = error.response.status_code if error.response is not None else None
        if status is not None and status >= 500:
            raise ModelError(f"{name}: the hub failed ({_first_line(error)}); push again later") from None
        mend = "log in with `hf auth login`, or set HF_TOKEN to a token that may write there"
        raise UserError(f"the hub refuses ({_first_line(error)})", where=name, mend=mend) from None
    except _transport_errors() as error:
        raise ModelError(f"{name}: the hub cannot be reached ({_first_line(error)}); push again later") from None
    return str(address)


def _transport_errors() -> tuple[type[Exception], ...]:
    """What the hub's client raises where the network fails: errors of httpx, or of httpx2 in its newer versions."""
    errors: list[type[Exception]] = [OSError]
    for name in ("httpx", "httpx2"):
        with contextlib.suppress(ImportError):
            errors.append(importlib.import_module(name).HTTPError)
    return tuple(errors)


def _first_line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0] or type(error).__name__
