"""Fetch the rows: the sample corpus, the user's CSV files, or Banking77 from its source or from the hub.

python -m stages.raw
"""

from pathlib import Path

from stages.parts.data import banking77, sources
from stages.parts.run.params import Params, load_params
from stages.parts.run.paths import RAW, SAMPLE
from stages.parts.run.stage import run_stage


def fetch(params: Params) -> dict[str, sources.Rows]:
    """The rows of both parts, `train` and `test`, from the source in force."""
    match params.raw.source:
        case "sample":
            return {part: sources.read_csv(SAMPLE / f"{part}.csv", "text", "category") for part in ("train", "test")}
        case "csv":
            files = {"train": Path(params.raw.train), "test": Path(params.raw.test)}
            return {part: sources.read_csv(file, params.raw.text_column, params.raw.label_column) for part, file in files.items()}
        case "url":
            return banking77.banking77_from_url()
        case "hub":
            return banking77.banking77_from_hub()


def main() -> None:
    rows = fetch(load_params())
    sources.check(rows["train"], rows["test"])
    for part, part_rows in rows.items():
        sources.write_csv(RAW / f"{part}.csv", part_rows)
        print(f"{part}: {len(part_rows)} rows")


if __name__ == "__main__":
    run_stage(main)
