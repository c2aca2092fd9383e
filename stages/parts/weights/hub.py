"""Model snapshots from the Hugging Face hub, pinned to a commit."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
from huggingface_hub import HfApi, snapshot_download
from huggingface_hub.errors import (
    GatedRepoError,
    HFValidationError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.utils import filter_repo_objects

from stages.parts.run.errors import UserError

# No pickles, no code, no second copy of the weights.
WEIGHTS_AND_TOKENIZER = [
    "*.safetensors",
    "*.safetensors.index.json",
    "*.json",
    "*.jinja",
    "tokenizer*",
    "sentencepiece*.model",
    "vocab.txt",
]
SECOND_COPIES = ["original/*", "onnx/*", "openvino/*", "consolidated*.safetensors"]


# What a model is, without what it has learned: for checks before a download.
DESCRIPTION = [pattern for pattern in WEIGHTS_AND_TOKENIZER if pattern != "*.safetensors"]
HUB_WAIT_S = 10


def snapshot(repository: str, revision: str, folder: Path) -> None:
    """Download a model's safetensors, configuration and tokenizer at a commit into `folder`; a broken download resumes.

    Raises UserError for a gated model without a token, an unknown model or commit, and no network.
    """
    with explained(repository, revision):
        snapshot_download(
            repository,
            revision=revision,
            local_dir=folder,
            allow_patterns=WEIGHTS_AND_TOKENIZER,
            ignore_patterns=SECOND_COPIES,
        )


def preview(repository: str, revision: str, folder: Path) -> int:
    """Download all but the weights into `folder` and return the weights' bytes; raises UserError as `snapshot` does."""
    with explained(repository, revision):
        hub = HfApi()
        listed = hub.model_info(repository, revision=revision, files_metadata=True, timeout=HUB_WAIT_S)
        hub.auth_check(repository)  # a gated model shows its list of files to everybody
        snapshot_download(
            repository,
            revision=revision,
            local_dir=folder,
            allow_patterns=DESCRIPTION,
            ignore_patterns=SECOND_COPIES,
            etag_timeout=HUB_WAIT_S,
        )
    files = filter_repo_objects(
        listed.siblings or [],
        allow_patterns=["*.safetensors"],
        ignore_patterns=SECOND_COPIES,
        key=lambda file: file.rfilename,
    )
    return sum(file.size or 0 for file in files)


@contextmanager
def explained(repository: str, revision: str) -> Iterator[None]:
    """Raise the hub's errors as UserError, with what to do."""
    try:
        yield
    except GatedRepoError:
        raise UserError(
            f"{repository} is gated: accept its licence on https://huggingface.co/{repository}, then set HF_TOKEN to "
            f"a token that may read it"
        ) from None
    except (RepositoryNotFoundError, RevisionNotFoundError):
        raise UserError(f"the hub has no {repository} at {revision} (or HF_TOKEN may not see it)") from None
    except HFValidationError:
        raise UserError(
            f"{repository!r} is no repository of the hub: write OWNER/NAME, or for files of your own "
            f"{{source: folder, path: ...}}"
        ) from None
    except (LocalEntryNotFoundError, OSError, httpx.HTTPError) as error:  # httpx's errors are no OSErrors
        raise UserError(
            f"{repository} could not be reached ({' '.join(str(error).split())[:200]}): check the network, or take "
            f"the weights from a folder ({{source: folder, path: ...}})"
        ) from None
