"""The student's base weights: pretrained ones, pinned, or a tiny Llama built on the spot.

python -m stages.base
"""

import tempfile
from pathlib import Path

from transformers import AutoTokenizer, set_seed

from stages.parts.encoder.vectors import stored_vectors
from stages.parts.run.files import read_json, read_jsonl
from stages.parts.run.machine import visible_gpus
from stages.parts.run.params import PretrainedStudentSettings, Train, load_params
from stages.parts.run.paths import BASE, GOLD, LABELS, POOL, REVIEWED
from stages.parts.run.stage import run_stage
from stages.parts.students.chat_template import check_template, freeze_date
from stages.parts.students.tiny import (
    build_model,
    build_tokenizer,
    format_lessons,
    hold_words,
    start_as_bag_of_tokens,
)
from stages.parts.task.program import IntentClassifier
from stages.parts.task.text import safe_text
from stages.parts.training.meanings import Meanings
from stages.parts.training.rows import encode
from stages.parts.training.trainer import TrainingPlan, fine_tune
from stages.parts.weights.fetch import place

# Not params.yaml's: another `train` must not change the base. Lessons are drawn anew for each of the student's epochs,
# so that one pass over all of them is the whole training.
TRAINING = Train(
    method="full",
    top_layers=None,
    epochs=1,
    batch=64,
    learning_rate=0.001,
    targets="hard",
    embeddings=False,
    query_dropout=0.0,
    warm_up=0.06,
    weight_decay=0.01,
    max_grad_norm=1.0,
)


def main() -> None:
    params = load_params()
    student = params.student
    program = IntentClassifier(read_json(LABELS), params.program.instructions, params.program.style)
    if isinstance(student, PretrainedStudentSettings):
        if student.device == "gpu":
            visible_gpus()
        place(student.weights, BASE)
        freeze_date(BASE)
        check_template(AutoTokenizer.from_pretrained(BASE), program, f"the student in {BASE}")
        return

    set_seed(params.seed)
    # as prompts will show them: the tokenizer and the token vectors are made of these
    known = [row for path in (GOLD, REVIEWED, POOL) for row in read_jsonl(path)]
    texts = [safe_text(row["text"], program.labels) for row in known]
    tokenizer = build_tokenizer(texts, program, student.vocabulary)
    check_template(tokenizer, program, "the tiny student")
    model = build_model(tokenizer, student)
    meanings = Meanings(*start_as_bag_of_tokens(model, tokenizer, texts, stored_vectors(known), params.seed))
    hold_words(model, tokenizer, texts)
    print(f"a Llama of {model.num_parameters() / 1e6:.2f} M parameters, {len(tokenizer)} tokens")

    lessons = format_lessons(texts, program, student.epochs, params.seed)
    rows = [{**encode(tokenizer, messages), "text": [number % len(texts)]} for number, messages in enumerate(lessons)]
    with tempfile.TemporaryDirectory() as scratch:
        settings = TRAINING.model_copy(update={"learning_rate": student.learning_rate})
        fine_tune(model, tokenizer, rows, TrainingPlan(settings, params.seed, meanings=meanings), Path(scratch))
    model.save_pretrained(BASE)
    tokenizer.save_pretrained(BASE)


if __name__ == "__main__":
    run_stage(main)
