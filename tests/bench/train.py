"""Paired training steps: stock TRL against ours, on the same rows from the same weights. `make bench-train`

python -m tests.bench.train [--steps 12] [--out reports/bench/train.json]

Rows are the sample corpus as SFT rows with the program's own prompt and direct answers (with reasoning suffixes are
longer, ratios lower). Two tokenizers: "plain", byte-level BPE as any hub student has it (the prompt is some 370
tokens), which `batch` reports; and the embedded student's own, in which the prompt's constant phrases are one token
each (`embedded_tokenizer`).

Stock is TRL's SFTTrainer with completion-only loss and the faster of its two collators, padded or padding-free (a
packed batch without the wait for packing); a trial picks it. Ours is `make_trainer` of stages/parts/training. On a CPU
stock's head scores every token and ours the learned ones alone, so that a part of the ratio is the head's; on a GPU
both score learned tokens alone.

On a CPU: the embedded student in float32. With a GPU: Llama-3.2-1B's shape with random weights in bfloat16, gradient
checkpointing on for both; its results go under `gpu` and leave the CPU's alone. `max_loss_diff` is absolute;
`max_grad_diff` is the largest relative difference of any parameter's gradient (L2 norms). Memory is what a step adds to
what stands: activations, gradients, and what the kernels need.
"""

import argparse
import statistics
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from datasets import Dataset
from stages.parts.tiny_llama import BEGIN, END_HEADER, END_OF_TURN, HEADER, PAD
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch.profiler import ProfilerActivity, profile
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast, logging, set_seed
from trl import SFTConfig, SFTTrainer
from trl.trainer.sft_trainer import DataCollatorForLanguageModeling

from stages.parts.run import paths
from stages.parts.run.files import read_json, write_json
from stages.parts.run.params import load_params
from stages.parts.students.tiny import CHAT_TEMPLATE, MAX_POSITIONS, build_model, build_tokenizer
from stages.parts.students.weights import lora_config
from stages.parts.task.program import IntentClassifier, training_messages
from stages.parts.training.rows import EncodedRow, encode
from stages.parts.training.shared_prefix import IGNORED, common_prefix_length
from stages.parts.training.trainer import TrainingPlan, make_trainer
from tests.bench.machine import machine

BATCHES = (8, 32)
PROJECTED = 6 * 4171  # rows: six epochs of Banking77's 25 most frequent labels
PEAK_FLOPS = {"H100": 989e12, "H200": 989e12, "A100": 312e12}  # dense bfloat16
ON_GPU = torch.cuda.is_available()


def plain_tokenizer(texts: Sequence[str], vocabulary: int) -> PreTrainedTokenizerFast:
    """Byte-level BPE that spells the prompt out, as a tokenizer does that was not made for it: 3.5 of its characters a
    token.
    """
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer, tokenizer.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    special = [BEGIN, END_OF_TURN, HEADER, END_HEADER, PAD]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    tokenizer.train_from_iterator(
        texts, trainers.BpeTrainer(vocab_size=vocabulary, special_tokens=special, initial_alphabet=alphabet)
    )
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token=BEGIN, eos_token=END_OF_TURN, pad_token=PAD)
    fast.model_max_length, fast.chat_template = MAX_POSITIONS, CHAT_TEMPLATE
    return fast


def llama_1b() -> LlamaForCausalLM:
    """Llama-3.2-1B's shape, random weights."""
    shape = LlamaConfig(
        vocab_size=128256,
        hidden_size=2048,
        intermediate_size=8192,
        num_hidden_layers=16,
        num_attention_heads=32,
        num_key_value_heads=8,
        head_dim=64,
        max_position_embeddings=131072,
        rope_parameters={"rope_type": "default", "rope_theta": 500000.0},
        tie_word_embeddings=True,
    )
    with torch.device("cuda"):
        return LlamaForCausalLM(shape).to(torch.bfloat16)


class Arm:
    """A trainer whose steps are taken by hand, so that two can take turns."""

    def __init__(self, trainer: SFTTrainer) -> None:
        self.trainer = trainer
        if trainer.args.gradient_checkpointing:  # the trainer does so in train(), which is not called here
            trainer.model.gradient_checkpointing_enable()
            assert trainer.model.is_gradient_checkpointing
        trainer.create_optimizer_and_scheduler(num_training_steps=1000)
        self.model, self.optimizer = trainer.accelerator.prepare(trainer.model, trainer.optimizer)
        for group in self.optimizer.param_groups:
            group["lr"] = 1e-3  # no warm-up: the adapters must leave zero
        self.model.train()
        self.weights = {name: weight for name, weight in trainer.model.named_parameters() if weight.requires_grad}

    def step(self, rows: Sequence[EncodedRow]) -> tuple[float, float]:
        """Collate, forward, backward, clip and update on `rows`; seconds and loss. Gradients stay until the next
        step.
        """
        self.optimizer.zero_grad()
        wait_for_gpu()
        started = time.perf_counter()
        inputs = self.trainer._prepare_inputs(self.trainer.data_collator(list(rows)))
        learned = (inputs["labels"][..., 1:] != -100).sum()
        loss = self.trainer.training_step(self.model, inputs, learned)
        torch.nn.utils.clip_grad_norm_(self.weights.values(), self.trainer.args.max_grad_norm)
        self.optimizer.step()
        wait_for_gpu()
        return time.perf_counter() - started, loss.item()

    def start_from(self, other: "Arm") -> None:
        with torch.no_grad():
            for name, weight in self.weights.items():
                weight.copy_(other.weights[name])


def wait_for_gpu() -> None:
    if ON_GPU:
        torch.cuda.synchronize()


def peak_bytes(arm: Arm, rows: Sequence[EncodedRow]) -> int:
    """The most memory that a step holds beyond what stood before it."""
    arm.optimizer.zero_grad()
    if ON_GPU:
        torch.cuda.reset_peak_memory_stats()
        standing = torch.cuda.memory_allocated()
        arm.step(rows)
        return torch.cuda.max_memory_allocated() - standing
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as seen:
        arm.step(rows)
    events = sorted(
        (event for event in seen.profiler.kineto_results.events() if event.name() == "[memory]"),
        key=lambda e: e.start_ns(),
    )
    held = peak = 0
    for event in events:
        held += event.nbytes()
        peak = max(peak, held)
    return peak


def gradient_difference(one: Arm, other: Arm) -> float:
    """The largest relative difference of a parameter's gradient."""
    return max(
        ((other.weights[name].grad - weight.grad).norm() / weight.grad.norm()).item()
        for name, weight in one.weights.items()
    )


def arms(rows: list[EncodedRow], tokenizer: PreTrainedTokenizerFast, batch: int, folder: Path) -> dict[str, Arm]:
    """Stock's two collators and ours, from the same weights."""
    params = load_params()

    def model() -> Any:
        set_seed(0)
        return llama_1b() if ON_GPU else build_model(tokenizer, params.student)

    def stock(padding_free: bool) -> SFTTrainer:
        settings = SFTConfig(
            output_dir=str(folder),
            per_device_train_batch_size=batch,
            bf16=ON_GPU,
            use_cpu=not ON_GPU,
            gradient_checkpointing=ON_GPU,
            completion_only_loss=True,
            max_length=None,
            report_to="none",
            weight_decay=0.01,
        )
        collator = DataCollatorForLanguageModeling(tokenizer.pad_token_id, padding_free=padding_free)
        return SFTTrainer(
            model(),
            args=settings,
            train_dataset=Dataset.from_list(rows),
            processing_class=tokenizer,
            data_collator=collator,
            peft_config=lora,
        )

    lora = lora_config(params.lora, embeddings=False)
    wanted = {"method": "lora", "epochs": 1, "batch": batch, "learning_rate": 1e-3, "query_dropout": 0.0}
    plan = TrainingPlan(params.train.model_copy(update=wanted), seed=0, lora=lora)
    ours = make_trainer(model(), tokenizer, rows, plan, folder)
    return {"padded": Arm(stock(False)), "padding_free": Arm(stock(True)), "ours": Arm(ours)}


def flops(arm: Arm, tokens: float, learned: float) -> float:
    """Model FLOPs of a LoRA step: forward and the activations' gradients, 2 each a weight, without recomputation. The
    tied head is an embedding for all `tokens` (no FLOPs) and a product for the `learned` ones."""
    head = arm.trainer.model.get_input_embeddings().weight.numel()
    return 4 * ((sum(weight.numel() for weight in arm.trainer.model.parameters()) - head) * tokens + head * learned)


def measure(rows: list[EncodedRow], tokenizer: PreTrainedTokenizerFast, batch: int, steps: int) -> dict[str, Any]:
    """Paired steps at one batch size."""
    batches = [rows[start : start + batch] for start in range(0, batch * (steps + 4), batch)]
    with tempfile.TemporaryDirectory() as folder:
        found = arms(rows, tokenizer, batch, Path(folder))
        ours = found.pop("ours")
        turns = [{name: arm.step(batches[number])[0] for name, arm in found.items()} for number in range(4)]
        trial = {name: min(turn[name] for turn in turns[1:]) for name in found}  # the first is a warm-up
        chosen = min(trial, key=lambda name: trial[name])
        stock = found[chosen]
        del found
        ours.step(batches[0])
        times, losses, gradients = [], [], []
        for number, given in enumerate(batches[4:]):
            ours.start_from(stock)
            if number % 2:  # who goes first takes turns
                (our_time, our_loss), (stock_time, stock_loss) = ours.step(given), stock.step(given)
            else:
                (stock_time, stock_loss), (our_time, our_loss) = stock.step(given), ours.step(given)
            times.append((stock_time, our_time))
            losses.append(abs(stock_loss - our_loss))
            gradients.append(gradient_difference(stock, ours))
        memory = {name: peak_bytes(arm, batches[1]) for name, arm in (("stock", stock), ("ours", ours))}
    stock_s, ours_s = (statistics.median(column) for column in zip(*times, strict=True))
    row_tokens = statistics.mean(len(row["input_ids"]) for given in batches[4:] for row in given) * batch
    computed = row_tokens - common_prefix_length(rows) * (batch - 1)
    learned = (
        statistics.mean(sum(label != IGNORED for label in row["labels"]) for given in batches[4:] for row in given)
        * batch
    )
    name = torch.cuda.get_device_name() if ON_GPU else ""
    peak = next((value for key, value in PEAK_FLOPS.items() if key in name), None)
    return {
        "speedup": statistics.median(one / two for one, two in times),
        "stock_collator": chosen,
        "stock_trial_s": trial,
        "stock_s": stock_s,
        "ours_s": ours_s,
        "stock_tokens_per_s": row_tokens / stock_s,
        "ours_tokens_per_s": row_tokens / ours_s,
        "ours_computed_tokens_per_s": computed / ours_s,
        "mfu": {
            "stock": flops(stock, row_tokens, learned) / stock_s / peak,
            "ours": flops(ours, computed, learned) / ours_s / peak,
        }
        if peak
        else None,
        "stock_six_epochs_s": PROJECTED / batch * stock_s,
        "ours_six_epochs_s": PROJECTED / batch * ours_s,
        "max_loss_diff": max(losses),
        "max_grad_diff": max(gradients),
        "stock_peak_mb": memory["stock"] / 2**20,
        "ours_peak_mb": memory["ours"] / 2**20,
        "peak_memory_ratio": memory["ours"] / memory["stock"],
        "pairs": len(times),
    }


def bench(tokenizer: PreTrainedTokenizerFast, chats: list[list[dict[str, str]]], steps: int) -> dict[str, Any]:
    """Both batch sizes with one tokenizer."""
    rows = [encode(tokenizer, messages) for messages in chats]
    prefix = common_prefix_length(rows)
    found = {}
    for batch in BATCHES:
        found[str(batch)] = one = measure(rows, tokenizer, batch, steps)
        print(
            f"prefix {prefix}, batch {batch}: {one['speedup']:.2f} x "
            f"({one['stock_s']:.3f} s {one['stock_collator']}, {one['ours_s']:.3f} s ours), "
            f"memory x {one['peak_memory_ratio']:.2f}, loss differs by {one['max_loss_diff']:.1e}, gradients by "
            f"{one['max_grad_diff']:.1e}",
            flush=True,
        )
    suffix = statistics.mean(len(row["input_ids"]) for row in rows) - prefix
    return {"prefix_tokens": prefix, "suffix_tokens": suffix, "batch": found}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=12, help="paired steps at each batch size (default: 12)")
    parser.add_argument("--out", type=Path, default=paths.REPORTS / "bench/train.json")
    options = parser.parse_args()
    logging.set_verbosity_error()
    params = load_params()
    corpus = pd.read_csv(paths.SAMPLE / "train.csv").sample(frac=1, random_state=0)
    program = IntentClassifier(sorted(corpus.category.unique()), params.program.instructions, "direct")
    chats = [training_messages(program, row.text, row.category, "") for row in corpus.itertuples()]
    vocabulary = params.profiles["embedded"].student.vocabulary
    prompt = [chats[0][0]["content"]] * 5
    plain = bench(plain_tokenizer([*corpus.text, *prompt], vocabulary), chats, options.steps)
    both = {
        **plain,
        **{
            key: max(one[key] for one in plain["batch"].values())
            for key in ("max_loss_diff", "max_grad_diff", "peak_memory_ratio")
        },
        "embedded_tokenizer": bench(build_tokenizer(list(corpus.text), program, vocabulary), chats, options.steps),
    }
    before = read_json(options.out) if options.out.exists() else {"gpu": None}
    if ON_GPU:
        student = {"model": "Llama-3.2-1B's shape, random weights, bfloat16, gradient checkpointing"}
        write_json(
            options.out,
            before | {"gpu": {"machine": machine() | {"gpu": torch.cuda.get_device_name()}, **student, **both}},
        )
    else:
        student = {"model": "the embedded student, float32, no gradient checkpointing"}
        write_json(options.out, {"machine": machine(), **student, **both, "gpu": before["gpu"]})
    print(f"written to {options.out}")


if __name__ == "__main__":
    main()
