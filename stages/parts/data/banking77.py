"""Banking77, pinned, from its authors' repository."""

from pathlib import Path

import pandas as pd
import requests

from stages.parts.data.tables import read_table
from stages.parts.run.errors import UserError
from stages.parts.run.files import file_sha256, whole_file
from stages.parts.run.paths import cache
from stages.parts.run.progress import Progress

# Banking77 (Casanueva et al., arXiv 2003.04807; CC BY 4.0), as its authors published it.
BANKING77_URL = "https://raw.githubusercontent.com/PolyAI-LDN/task-specific-datasets/57ec275d8078af65b7731c2a98be812d844a6d6b/banking_data/{part}.csv"
BANKING77_SHA256 = {
    "train": "b06e26ac675513959a63135f11b94ea7786ed02da65db93a5650d8838cbc664b",
    "test": "d12d6e3bc4c3103966ae786dc435913c0c563dfa328f5a3646d0e62cfeeb474d",
}


def banking77_from_url() -> dict[str, pd.DataFrame]:
    """Banking77's files from the authors' repository, checked against their sha256; kept in .cache for the next run."""
    tables = {}
    for part, sha256 in BANKING77_SHA256.items():
        path = cache() / "downloads" / f"{sha256[:16]}-{part}.csv"
        if not path.exists():
            download(BANKING77_URL.format(part=part), path, sha256)
        tables[part] = read_table(path, "text", "category")
    return tables


def download(url: str, path: Path, sha256: str) -> None:
    """Fetch a file; raises UserError where the network or the content is not as it should be, and then leaves no
    file.
    """
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
            f"{url} could not be fetched ({type(error).__name__}): check the network, or use your copy with "
            f"raw.source=csv"
        ) from None
