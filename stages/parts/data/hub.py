"""Any labelled data set of the Hugging Face hub, from a pinned revision."""

import datasets
import pandas as pd

from stages.parts.data.faults import Faults
from stages.parts.data.tables import checked
from stages.parts.run.errors import UserError
from stages.parts.run.params import HubData


def read_hub(hub: HubData) -> dict[str, pd.DataFrame]:
    """The tables `train` and `test` of a data set; raises UserError where the hub, the splits or the rows are not as
    they should be.
    """
    tables = {}
    for part, split in (("train", hub.train), ("test", hub.test)):
        source = f"{hub.repository}, split {split}"
        try:
            rows = datasets.load_dataset(hub.repository, hub.configuration, split=split, revision=hub.revision)
        except (datasets.exceptions.DatasetsError, OSError, ValueError) as error:
            reason = " ".join(str(error).split())[:200]
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
    """A class's name; None for a row without a label, which has -1 on the hub, or nothing."""
    return None if number is None or number < 0 else str(names.int2str(number))
