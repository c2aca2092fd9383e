"""What comes from the Hugging Face hub, pinned: model snapshots, and chat templates that don't change by the day."""

from pathlib import Path

from huggingface_hub import snapshot_download
from huggingface_hub.errors import GatedRepoError, LocalEntryNotFoundError, RepositoryNotFoundError, RevisionNotFoundError
from transformers import AutoTokenizer

from stages.parts.errors import UserError

# No pickles, no code, no second copy of the weights.
WEIGHTS_AND_TOKENIZER = [
    "*.safetensors",
    "*.safetensors.index.json",
    "*.json",
    "*.jinja",
    "tokenizer*",
]
ORIGINALS = ["original/*"]
# Templates print `date_string` where it is set and ask the clock where it is not; the clock is taken away too, for those that only ask it.
FIXED_DATE = '{%- set date_string = "26 Jul 2024" %}{%- macro strftime_now(form) %}26 Jul 2024{%- endmacro %}'


def snapshot(model: str, revision: str, folder: Path) -> None:
    """Download a model's safetensors, configuration and tokenizer at a commit into `folder`, with the hub's progress bars.

    Raises UserError for a gated model without a token, an unknown model or commit, and no network.
    """
    try:
        snapshot_download(model, revision=revision, local_dir=folder, allow_patterns=WEIGHTS_AND_TOKENIZER, ignore_patterns=ORIGINALS)
    except GatedRepoError:
        raise UserError(
            f"{model} is gated: accept its licence on https://huggingface.co/{model}, then set HF_TOKEN to a token that may read it"
        ) from None
    except (RepositoryNotFoundError, RevisionNotFoundError):
        raise UserError(f"the hub has no {model} at {revision} (or HF_TOKEN may not see it)") from None
    except (LocalEntryNotFoundError, OSError) as error:
        raise UserError(f"{model} could not be downloaded: {' '.join(str(error).split())[:200]}") from None


def freeze_date(folder: Path) -> None:
    """Fix the day that a chat template writes into the system prompt, in a snapshot's own files.

    Llama 3.2's template prints today's date: tomorrow's prompts would differ from those that the student was trained on.
    """
    tokenizer = AutoTokenizer.from_pretrained(folder)
    if tokenizer.chat_template is None:
        raise UserError(f"{folder} has no chat template: choose an instruction-tuned student")
    if "strftime_now" in tokenizer.chat_template:
        tokenizer.chat_template = FIXED_DATE + tokenizer.chat_template
        tokenizer.save_pretrained(folder)
