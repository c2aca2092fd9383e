"""The linear student: TF-IDF with logistic regression on the rows that the other students learn.

python -m stages.linear
"""

from stages.parts.numbers.baselines import fitted_baseline
from stages.parts.numbers.held_out import record_held_out
from stages.parts.run import paths
from stages.parts.run.files import iter_jsonl, read_json, read_jsonl, write_jsonl
from stages.parts.run.params import load_params
from stages.parts.run.stage import run_stage
from stages.parts.students.linear import read_linear, write_linear
from stages.parts.task.student_file import write_no_student


def main() -> None:
    texts = {row["id"]: row["text"] for part in (paths.POOL, paths.REVIEWED) for row in iter_jsonl(part)}
    rows = [(texts[row["id"]], row["label"]) for row in read_jsonl(paths.SFT_TRAIN)]
    fitted = fitted_baseline(rows, load_params().seed)
    if fitted is None:
        write_no_student(paths.LINEAR)
        write_jsonl(paths.LINEAR_HELD_OUT, [])
        print("the rows have one label alone, so there is no linear student")
        return
    write_linear(fitted, read_json(paths.LABELS), paths.LINEAR)

    student = read_linear(paths.LINEAR)
    assert student, "it has just been written"
    record_held_out(student, paths.LINEAR, paths.LINEAR_HELD_OUT, len(rows))


if __name__ == "__main__":
    run_stage(main)
