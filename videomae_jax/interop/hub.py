"""Downloads models from the Hugging Face Hub into its cache."""

import pathlib
import re

from videomae_jax.errors import PretrainedError

_FILES = (["*.json", "*.safetensors"], ["*.json", "pytorch_model*.bin"])


def is_name(source: str) -> bool:
    """Returns whether this looks like owner/model, or owner/model/path/to/file."""
    part = r"[A-Za-z0-9][\w.-]*"
    return re.fullmatch(rf"{part}(/{part}){{1,8}}", source) is not None


def download(name: str, revision: str | None) -> pathlib.Path:
    """Returns the folder of a model, or one file, downloaded unless in the cache.

    Args:
        name: owner/model for weights and configs, or owner/model/path/to/file.
        revision: a commit, tag or branch; None for the newest.

    Raises:
        PretrainedError: if model, file or revision are not found or not accessible, or
            the hub cannot be reached and they are not in the cache.
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
            return pathlib.Path(
                huggingface_hub.hf_hub_download(repository, path[0], revision=revision)
            )
        for patterns in _FILES:
            folder = pathlib.Path(
                huggingface_hub.snapshot_download(
                    repository, revision=revision, allow_patterns=patterns
                )
            )
            if any(folder.glob(patterns[1])):
                return folder
    except errors.GatedRepoError as error:
        reason = (
            f"its owner requires an agreement; accept it on the page of {repository} "
            "and log in with `hf auth login`"
        )
        raise _error(name, revision, reason) from error
    except errors.RepositoryNotFoundError as error:
        reason = "model not found, or private; check the name, or log in"
        raise _error(name, revision, reason) from error
    except errors.RevisionNotFoundError as error:
        raise _error(name, revision, "revision not found") from error
    except (errors.OfflineModeIsEnabled, errors.LocalEntryNotFoundError) as error:
        reason = (
            "the hub cannot be reached, or HF_HUB_OFFLINE is set, and the model is not "
            "in the cache. Connect, or copy the model's folder from another machine "
            "and pass its path"
        )
        raise _error(name, revision, reason) from error
    except errors.EntryNotFoundError as error:
        raise _error(name, revision, "file not found") from error
    except (errors.HfHubHTTPError, errors.HFValidationError, OSError) as error:
        raise _error(name, revision, str(error)) from error
    raise _error(
        name,
        revision,
        "it has neither .safetensors nor pytorch_model.bin files; pass another file as "
        "owner/model/path/to/file.pth",
    )


def _error(name: str, revision: str | None, reason: str) -> PretrainedError:
    at = f" at revision {revision!r}" if revision else ""
    return PretrainedError(
        f"{name!r} is not a local path, and downloading it from the Hugging Face Hub"
        f"{at} failed: {reason}"
    )
