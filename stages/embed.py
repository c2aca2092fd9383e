"""Vectors of the texts and of the labels' names, from the encoder: what the teacher, the review and the checks compare.

python -m stages.embed
"""

import numpy as np

from stages.parts.encoder.pretrained import encoder_key, load_encoder
from stages.parts.encoder.vectors import PARTS, embed_file, label_texts, part_file
from stages.parts.run import paths
from stages.parts.run.files import read_json, whole_file, write_json
from stages.parts.run.params import load_params
from stages.parts.run.stage import run_stage


def main() -> None:
    settings = load_params().encoder
    if settings is None:
        write_json(paths.EMBEDDINGS_ENCODER, {"key": None})
        print("encoder: none, so that texts are compared by their words alone")
        return
    encoder, key = load_encoder(settings), encoder_key(settings)
    labels = label_texts(read_json(paths.LABELS), read_json(paths.DESCRIPTIONS))
    with whole_file(part_file("labels")) as draft, draft.open("wb") as file:
        np.save(file, encoder.vectors(labels).astype(np.float16))
    count = len(labels)
    for part in PARTS:
        rows, kept = paths.SPLITS / f"{part}.jsonl", paths.cache() / "embeddings" / key / part
        count += embed_file(encoder, rows, part_file(part), kept)
    write_json(paths.EMBEDDINGS_ENCODER, {"key": key, "model": settings.weights.model_id, "size": encoder.size})
    print(f"{count} texts as vectors of {encoder.size} numbers, from {settings.weights.model_id}")


if __name__ == "__main__":
    run_stage(main)
