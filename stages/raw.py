"""Fetch the rows: a folder of your own, the sample corpus, labelled files, or a data set from its source or from the
hub.

python -m stages.raw
"""

from pathlib import Path

import pandas as pd

from stages.parts.data.benchmarks import banking77_from_url, read_hub
from stages.parts.data.folder import read_folder, read_labels
from stages.parts.data.tables import read_table
from stages.parts.preflight.checks import require_setup
from stages.parts.run.files import whole_file, write_json
from stages.parts.run.params import Params, load_params
from stages.parts.run.paths import RAW_LABELS, RAW_ROWS, SAMPLE
from stages.parts.run.stage import run_stage


def fetch(params: Params) -> tuple[dict[str, pd.DataFrame], dict[str, str]]:
    """Return the tables of the source in force, and the labels that it names with their descriptions.

    A folder's are `pool`, `gold` and maybe `test`, and it names all its labels; the others' are `train` and `test`,
    both labelled.
    """
    raw = params.raw
    match raw.source:
        case "folder":
            return read_folder(Path(raw.folder), raw.text_column, raw.label_column)
        case "sample":
            tables = {part: read_table(SAMPLE / f"{part}.csv", "text", "category") for part in ("train", "test")}
            return tables, read_labels(SAMPLE / "labels.csv")
        case "csv":
            files = {"train": raw.train, "test": raw.test}
            return {part: read_table(Path(file), raw.text_column, raw.label_column) for part, file in files.items()}, {}
        case "url":
            return banking77_from_url(), {}
        case "hub":
            return read_hub(raw.hub), {}


def main() -> None:
    params = load_params()
    require_setup(params)
    tables, labels = fetch(params)
    print(", ".join(f"{part} {len(rows)} rows" for part, rows in tables.items()))
    rows = pd.concat([table.assign(part=part) for part, table in tables.items()], ignore_index=True)
    with whole_file(RAW_ROWS) as draft:
        rows.to_parquet(draft, index=False)
    write_json(RAW_LABELS, labels)


if __name__ == "__main__":
    run_stage(main)
