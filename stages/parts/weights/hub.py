"""Model snapshots from the Hugging Face hub, pinned to a commit."""

from pathlib import Path

import httpx
from huggingface_hub import snapshot_download
from huggingface_hub.errors import (
    GatedRepoError,
    HFValidationError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

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


def snapshot(repository: str, revision: str, folder: Path) -> None:
    """Download a model's safetensors, configuration and tokenizer at a commit into `folder`; a broken download resumes.

    Raises UserError for a gated model without a token, an unknown model or commit, and no network.
    """
    try:
        snapshot_download(
            repository,
            revision=revision,
            local_dir=folder,
            allow_patterns=WEIGHTS_AND_TOKENIZER,
            ignore_patterns=SECOND_COPIES,
        )
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
            f"{repository} could not be downloaded ({' '.join(str(error).split())[:200]}): check the network, or take "
            f"the weights from a folder ({{source: folder, path: ...}})"
        ) from None
