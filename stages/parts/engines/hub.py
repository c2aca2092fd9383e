"""Model snapshots from the Hugging Face hub, pinned to a commit."""

from pathlib import Path

from huggingface_hub import snapshot_download
from huggingface_hub.errors import (
    GatedRepoError,
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
]
SECOND_COPIES = ["original/*", "consolidated*.safetensors"]  # as Meta and Mistral ship them


def snapshot(model: str, revision: str, folder: Path) -> None:
    """Download a model's safetensors, configuration and tokenizer at a commit into `folder`, with the hub's progress
    bars.

    Raises UserError for a gated model without a token, an unknown model or commit, and no network.
    """
    try:
        snapshot_download(
            model,
            revision=revision,
            local_dir=folder,
            allow_patterns=WEIGHTS_AND_TOKENIZER,
            ignore_patterns=SECOND_COPIES,
        )
    except GatedRepoError:
        raise UserError(
            f"{model} is gated: accept its licence on https://huggingface.co/{model}, then set HF_TOKEN to a token "
            f"that may read it"
        ) from None
    except (RepositoryNotFoundError, RevisionNotFoundError):
        raise UserError(f"the hub has no {model} at {revision} (or HF_TOKEN may not see it)") from None
    except (LocalEntryNotFoundError, OSError) as error:
        raise UserError(f"{model} could not be downloaded: {' '.join(str(error).split())[:200]}") from None
