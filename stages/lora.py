"""LoRA SFT of the student on the teacher's labels; keeps every epoch's adapter.

python -m stages.lora
"""

import shutil

from peft import LoraConfig
from transformers import AutoModelForCausalLM, AutoTokenizer, set_seed

from stages.parts import paths
from stages.parts.params import load_params
from stages.parts.records import file_sha256, folder_sha256, read_jsonl, row_id, write_json
from stages.parts.stage import run_stage
from stages.parts.training import encode, fine_tune


def main() -> None:
    params = load_params()
    settings = params.own.sft
    rows = read_jsonl(paths.SFT_TRAIN)

    set_seed(params.seed)
    tokenizer = AutoTokenizer.from_pretrained(paths.BASE)
    model = AutoModelForCausalLM.from_pretrained(paths.BASE, dtype="auto")
    lora = LoraConfig(
        r=params.lora.r,
        lora_alpha=params.lora.alpha,
        lora_dropout=params.lora.dropout,
        target_modules="all-linear",
        task_type="CAUSAL_LM",
    )

    # Checkpoints live outside DVC's outputs, under a name of all that shapes them, so that a killed run goes on where it was.
    inputs = [
        file_sha256(paths.SFT_TRAIN),
        folder_sha256(paths.BASE),
        params.lora.model_dump_json(),
        settings.model_dump_json(),
        params.seed,
    ]
    checkpoints = paths.cache() / "lora" / row_id("\n".join(map(str, inputs)))
    log = fine_tune(
        model,
        tokenizer,
        [encode(tokenizer, row["messages"]) for row in rows],
        folder=checkpoints,
        epochs=params.lora.epochs,
        batch=settings.batch,
        learning_rate=settings.learning_rate,
        seed=params.seed,
        lora=lora,
    )

    steps = sorted(checkpoints.glob("checkpoint-*"), key=lambda folder: int(folder.name.rpartition("-")[2]))
    for epoch, step in enumerate(steps, start=1):
        adapter = paths.LORA / f"epoch-{epoch}"
        adapter.mkdir(parents=True, exist_ok=True)
        for name in ("adapter_config.json", "adapter_model.safetensors"):
            shutil.copy(step / name, adapter / name)
    write_json(
        paths.LEARNING_CURVE,
        [{key: entry[key] for key in ("step", "epoch", "loss", "learning_rate", "mean_token_accuracy")} for entry in log],
    )
    shutil.rmtree(checkpoints)


if __name__ == "__main__":
    run_stage(main)
