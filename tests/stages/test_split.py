"""Stage split: what people reviewed leaves the pool, and nothing else moves."""

import pandas as pd
import pytest
import yaml

from stages import split
from stages.parts.data.rows import row_id
from stages.parts.run import paths
from stages.parts.run.errors import UserError
from stages.parts.run.files import read_json, read_jsonl, write_json
from tests.conftest import ROOT


def test_decisions_take_rows_out_of_the_pool_and_out_of_the_seal(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    texts = [f"query {number}" for number in range(60)]
    table = pd.DataFrame(
        {"id": map(row_id, texts), "text": texts, "label": ["a", "b"] * 30, "part": ["train"] * 50 + ["test"] * 10}
    )
    paths.FILTERED.mkdir(parents=True)
    table.to_parquet(paths.FILTERED_ROWS)
    write_json(paths.LABELS, ["a", "b"])
    params = yaml.safe_load((ROOT / "params.yaml").read_text())
    params["split"] |= {"gold": 10, "dev": 5, "optimizer_val": 5}
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(params))
    content = paths.FILTERED_ROWS.read_bytes()
    paths.FILTERED_ROWS.write_bytes(content[:200])
    with pytest.raises(UserError, match=r"rows\.parquet is not Parquet \(.*\): remove it and run `dvc repro`"):
        split.main()
    paths.FILTERED_ROWS.unlink()
    with pytest.raises(UserError, match=r"rows\.parquet is missing: run `dvc repro`"):
        split.main()
    paths.FILTERED_ROWS.write_bytes(content)
    split.main()
    gold, pool, test = (read_jsonl(path) for path in (paths.GOLD, paths.POOL, paths.TEST))
    assert not read_jsonl(paths.REVIEWED)

    # A row of the pool, one of gold, one of test, and one of another corpus: only the pool's counts, and its label is
    # the person's.
    decided = [pool[3]["id"], gold[0]["id"], test[0]["id"], "of another corpus"]
    paths.DECISIONS.parent.mkdir()
    paths.DECISIONS.write_text("id,label\n" + "".join(f"{row},a\n{row},b\n" for row in decided))
    split.main()
    assert read_jsonl(paths.REVIEWED) == [{**pool[3], "label": "b"}]
    assert [row["id"] for row in read_jsonl(paths.POOL)] == [row["id"] for row in pool if row != pool[3]]
    assert pool[3]["id"] not in {row["id"] for row in read_jsonl(paths.SEALED)}
    assert (read_jsonl(paths.GOLD), read_jsonl(paths.TEST)) == (gold, test)
    report = read_json(paths.SPLIT_REPORT)
    assert report["reviewed"] == 1
    assert (report["decisions_about_gold_or_test"], report["decisions_about_no_row"]) == (2, 1)
    assert report["decisions_that_differ"] == (gold[0]["label"] != "b") + (test[0]["label"] != "b")
    said = capsys.readouterr().out
    assert "1 of 4 decisions are about no row: of another corpus" in said and "2 of 4 decisions are about gold" in said
    paths.DECISIONS.write_text(f"id,label\n{pool[3]['id']},c\n")
    with pytest.raises(UserError, match="'c' is none of this run's 2 labels"):
        split.main()
