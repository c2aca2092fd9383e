"""720 short Japanese texts of eight intents, made from templates: a language without blanks between words."""

import random
from itertools import product
from pathlib import Path

import pandas as pd

# Intent -> what somebody writes about it, before and after which the pieces below stand.
INTENTS = {
    "カードの紛失": [
        "カードを無くしました",
        "カードを落としてしまった",
        "財布ごとカードを盗まれた",
        "カードが見当たらない",
    ],
    "カードの到着": ["新しいカードが届かない", "カードの配送が遅い", "カードはいつ届きますか", "郵便でカードが来ない"],
    "残高の照会": ["残高を教えてほしい", "口座にいくら残っているか", "残高が合わない", "残高を確認したい"],
    "振込の遅れ": ["振込がまだ反映されない", "送金が届いていない", "昨日の振込が遅れている", "給料の振込が来ない"],
    "暗証番号": ["暗証番号を忘れた", "暗証番号を変更したい", "暗証番号がロックされた", "暗証番号を間違えた"],
    "返金": ["返金してほしい", "買い物の返金がない", "二重に引かれたので返金を", "返金はいつになりますか"],
    "為替レート": ["為替レートがおかしい", "ドルの両替レートは", "海外での換算レートを知りたい", "ユーロの為替が違う"],
    "限度額": ["利用限度額を上げたい", "限度額に達した", "一日の限度額はいくら", "限度額を下げてください"],
}
BEFORE = ["", "すみません、", "至急です。", "こんにちは。", "昨日から", "アプリで"]
AFTER = ["", "。", "のですが", "。どうすればいいですか", "😢", "!早くして", "、お願いします"]
PER_INTENT = 90
GOLD, TEST = 10, 20  # of each intent


def japanese_rows() -> pd.DataFrame:
    """Return 720 different texts with their labels, shuffled."""
    rows = []
    for label, cores in INTENTS.items():
        texts = sorted({before + core + after for before, core, after in product(BEFORE, cores, AFTER)})
        rows += [(text, label) for text in random.Random(label).sample(texts, PER_INTENT)]
    random.Random(0).shuffle(rows)
    return pd.DataFrame(rows, columns=["text", "category"])


def write_folder(folder: Path) -> None:
    """Write the rows as a folder of one's own: pool, gold, labels, test."""
    folder.mkdir(parents=True)
    rows = japanese_rows()
    place = rows.groupby("category").cumcount()
    rows[place < GOLD].to_csv(folder / "gold.csv", index=False)
    rows[(place >= GOLD) & (place < GOLD + TEST)].to_csv(folder / "test.csv", index=False)
    rows[place >= GOLD + TEST][["text"]].to_csv(folder / "pool.csv", index=False)
    pd.DataFrame({"name": list(INTENTS)}).to_csv(folder / "labels.csv", index=False)
