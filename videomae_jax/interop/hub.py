"""Fetches models from the Hugging Face hub, once."""

import pathlib
import re

from videomae_jax.errors import PretrainedError

_FILES = (["*.json", "*.safetensors"], ["*.json", "pytorch_model*.bin"])


def is_name(source: str) -> bool:
    """Whether this looks like owner/model, or owner/model/path/to/file."""
    part = r"[A-Za-z0-9][\w.-]*"
    return re.fullmatch(rf"{part}(/{part}){{1,8}}", source) is not None


def download(name: str, revision: str | None) -> pathlib.Path:
    """Fetches what is not in the cache yet.

    Args:
        name: owner/model, whose weights and configs are fetched, or
            owner/model/path/to/file for one file.
        revision: a commit, tag or branch; None for the newest.

    Returns:
        The folder, or the file.

    Raises:
        PretrainedError: if there is no such model, file or revision, it is not open to
            you, or there is no connection and nothing cached.
    """
    try:
        import huggingface_hub
        from huggingface_hub import errors
    except ImportError as error:
        reason = "huggingface_hub is not installed (pip install huggingface_hub)"
        raise _error(name, revision, reason) from error

    owner, model, *path = name.split("/", 2)
    repository = f"{owner}/{model}"
    try:
        if path:
            file = huggingface_hub.hf_hub_download(
                repository, path[0], revision=revision
            )
            return pathlib.Path(file)
        for patterns in _FILES:
            folder = huggingface_hub.snapshot_download(
                repository, revision=revision, allow_patterns=patterns
            )
            folder = pathlib.Path(folder)
            if any(folder.glob(patterns[1])):
                return folder
    except errors.GatedRepoError as error:
        reason = (
            f"its owner asks for an agreement first: accept it on the page of "
            f"{repository} and log in with `hf auth login`"
        )
        raise _error(name, revision, reason) from error
    except errors.RepositoryNotFoundError as error:
        reason = "there is no such model, or it is private: check the name, or log in"
        raise _error(name, revision, reason) from error
    except errors.RevisionNotFoundError as error:
        raise _error(name, revision, "there is no such revision") from error
    except (errors.OfflineModeIsEnabled, errors.LocalEntryNotFoundError) as error:
        reason = (
            "the hub cannot be reached, or HF_HUB_OFFLINE is set, and it is not in the "
            "cache. Connect, or copy the model's folder here from a machine that can "
            "and give its path"
        )
        raise _error(name, revision, reason) from error
    except errors.EntryNotFoundError as error:
        raise _error(name, revision, "there is no such file") from error
    except (errors.HfHubHTTPError, errors.HFValidationError, OSError) as error:
        raise _error(name, revision, str(error)) from error
    raise _error(
        name,
        revision,
        "it has neither .safetensors nor pytorch_model.bin files; a single other file "
        "can be given as owner/model/path/to/file.pth",
    )


def _error(name: str, revision: str | None, reason: str) -> PretrainedError:
    at = f" at revision {revision!r}" if revision else ""
    return PretrainedError(
        f"{name!r} is no file or folder here, and as a model of the Hugging Face "
        f"hub{at} it cannot be had: {reason}"
    )
