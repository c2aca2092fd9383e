"""Labelled data sets from the network, each pinned: Banking77 from its authors, any other from the Hugging Face hub."""

from pathlib import Path

import datasets
import pandas as pd
import requests

from stages.parts.data.tables import Faults, checked, read_table
from stages.parts.run.errors import UserError
from stages.parts.run.files import file_sha256, whole_file
from stages.parts.run.params import HubData
from stages.parts.run.paths import cache
from stages.parts.run.progress import Progress

# Banking77 (Casanueva et al., arXiv 2003.04807; CC BY 4.0), as its authors published it.
BANKING77_URL = "https://raw.githubusercontent.com/PolyAI-LDN/task-specific-datasets/57ec275d8078af65b7731c2a98be812d844a6d6b/banking_data/{part}.csv"
BANKING77_SHA256 = {
    "train": "b06e26ac675513959a63135f11b94ea7786ed02da65db93a5650d8838cbc664b",
    "test": "d12d6e3bc4c3103966ae786dc435913c0c563dfa328f5a3646d0e62cfeeb474d",
}


def banking77_from_url() -> dict[str, pd.DataFrame]:
    """Return Banking77's tables from its authors' repository, checked by sha256; the files stay in .cache."""
    tables = {}
    for part, sha256 in BANKING77_SHA256.items():
        path = cache() / "downloads" / f"{sha256[:16]}-{part}.csv"
        if not path.exists():
            download(BANKING77_URL.format(part=part), path, sha256)
        tables[part] = read_table(path, "text", "category")
    return tables


def download(url: str, path: Path, sha256: str) -> None:
    """Fetch a file; raise UserError, and leave no file, if it can't be fetched or its sha256 is another."""
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


def read_hub(hub: HubData) -> dict[str, pd.DataFrame]:
    """Return the tables `train` and `test` of a data set; raise UserError if the hub, a split or a row is not right."""
    tables = {}
    for part, split in (("train", hub.train), ("test", hub.test)):
        source = f"{hub.repository}, split {split}"
        try:
            rows = datasets.load_dataset(hub.repository, hub.configuration, split=split, revision=hub.revision)
        # Of any type: httpx's when the hub is down, RuntimeError for a data set that is a script, pyarrow's, ...
        except Exception as error:
            reason = " ".join(f"{type(error).__name__}: {error}".split())[:200]
            raise UserError(
                f"{source} at {hub.revision} could not be loaded from the hub ({reason}): check the network and raw.hub"
            ) from None
        for name, column in (("text", hub.text_column), ("label", hub.label_column)):
            if column not in rows.column_names:
                raise UserError(
                    f"{source} has no column {column!r} but {', '.join(rows.column_names)}: set raw.hub.{name}_column"
                )
        rows = rows.select_columns([hub.text_column, hub.label_column])
        names = rows.features[hub.label_column]
        if isinstance(names, datasets.ClassLabel):
            rows = rows.cast_column(hub.label_column, datasets.Value("int64"))
            stream = ({**row, hub.label_column: class_name(names, row[hub.label_column])} for row in rows)
        else:
            stream = iter(rows)
        tables[part] = checked(enumerate(stream, start=1), Faults(source), hub.text_column, hub.label_column)
    return tables


def class_name(names: datasets.ClassLabel, number: int | None) -> str | None:
    """Return a class's name; None for a row without a label, which has -1 on the hub, or nothing."""
    return None if number is None or number < 0 else str(names.int2str(number))
