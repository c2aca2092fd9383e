"""Banking77, pinned: from its authors' repository, or from the hub."""

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path

import datasets
import requests

from stages.parts.data.sources import Rows, read_csv
from stages.parts.run.errors import UserError
from stages.parts.run.files import file_sha256, whole_file
from stages.parts.run.paths import cache
from stages.parts.run.progress import Progress
from stages.parts.task.labels import clean_label

# Banking77 (Casanueva et al., arXiv 2003.04807; CC BY 4.0), as its authors published it.
BANKING77_URL = (
    "https://raw.githubusercontent.com/PolyAI-LDN/task-specific-datasets/57ec275d8078af65b7731c2a98be812d844a6d6b/banking_data/{part}.csv"
)
BANKING77_SHA256 = {
    "train": "b06e26ac675513959a63135f11b94ea7786ed02da65db93a5650d8838cbc664b",
    "test": "d12d6e3bc4c3103966ae786dc435913c0c563dfa328f5a3646d0e62cfeeb474d",
}
# The hub holds it in another container, so its pin is over the sorted, cleaned rows (`rows_sha256`).
BANKING77_HUB = ("mteb/banking77", "0fd18e25b25c072e09e0d92ab615fda904d66300")
BANKING77_ROWS_SHA256 = {
    "train": "46fa067b33a45b26019522ea8c37f9282f0f97a20a8c9068cdfa2f61c2523769",
    "test": "2fa1cf62cff47211d68953d7c97c6579702b2bfa20f9e8dbea4acce13b801559",
}


def banking77_from_url() -> dict[str, Rows]:
    """Banking77's files from the authors' repository, checked against their sha256; kept in .cache for the next run."""
    rows = {}
    for part, sha256 in BANKING77_SHA256.items():
        path = cache() / "downloads" / f"{sha256[:16]}-{part}.csv"
        if not path.exists():
            download(BANKING77_URL.format(part=part), path, sha256)
        rows[part] = read_csv(path, "text", "category")
    return rows


def download(url: str, path: Path, sha256: str) -> None:
    """Fetch a file; raises UserError where the network or the content is not as it should be, and then leaves no file."""
    try:
        with requests.get(url, stream=True, timeout=30) as answer, whole_file(path) as draft:
            answer.raise_for_status()
            size = int(answer.headers.get("content-length", 0)) or None
            with draft.open("wb") as file, Progress(f"downloading {path.name}", size, "byte") as progress:
                for block in answer.iter_content(1 << 16):
                    file.write(block)
                    progress.update(len(block))
            if file_sha256(draft) != sha256:
                raise UserError(f"{url} is not the file that is pinned (sha256 {file_sha256(draft)}, wanted {sha256})")
    except requests.RequestException as error:
        raise UserError(
            f"{url} could not be fetched ({type(error).__name__}): check the network, or use your copy with raw.source=csv"
        ) from None


def banking77_from_hub(repository: str = BANKING77_HUB[0], revision: str = BANKING77_HUB[1]) -> dict[str, Rows]:
    """Banking77 through `datasets` from a pinned commit; raises UserError where its rows are not the authors' rows."""
    try:
        tables = datasets.load_dataset(repository, revision=revision)
    except (ConnectionError, OSError) as error:
        raise UserError(
            f"{repository} could not be loaded from the hub ({type(error).__name__}): check the network, or use raw.source=url"
        ) from None
    rows = {part: list(zip(tables[part]["text"], tables[part]["label_text"], strict=True)) for part in BANKING77_ROWS_SHA256}
    for part, sha256 in BANKING77_ROWS_SHA256.items():
        if rows_sha256(rows[part]) != sha256:
            raise UserError(f"{repository} at {revision}: the {part} rows are not Banking77's: use raw.source=url")
    return rows


def rows_sha256(rows: Sequence[tuple[str, str]]) -> str:
    """A hash of rows that order, blanks around a text and the spelling of a label name do not change."""
    cleaned = sorted((text.strip(), clean_label(label)) for text, label in rows)
    return hashlib.sha256(json.dumps(cleaned).encode()).hexdigest()
