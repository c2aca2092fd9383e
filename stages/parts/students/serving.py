"""The engines that serve a profile's students: the base, and each tuned one, merged or as an adapter beside the base.

What is scored is what is served: the stages and the service get their engines here. Merged weights answer several times
as many queries a second on a CPU (vLLM gathers an adapter's weights for every token there); adapters share one engine
with their base.
"""

from collections.abc import Generator, Mapping
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from multiprocessing import get_context
from pathlib import Path

from stages.parts.engines.engine import AdapterSlots, ServedModel, served_name
from stages.parts.engines.process import KINDS, EngineProcess, ModelToServe, prepare, running
from stages.parts.run.errors import UserError
from stages.parts.run.params import Params, PretrainedStudentSettings, TinyStudentSettings
from stages.parts.run.paths import cache


def is_adapter(folder: Path) -> bool:
    """Whether a tuned student's folder holds an adapter; else it holds a whole model (train.method full)."""
    return (folder / "adapter_config.json").is_file()


def shares_an_engine(folder: Path, params: Params) -> bool:
    """Whether a tuned student is served beside its base."""
    return is_adapter(folder) and params.runtime.weights == "adapter"


def base_engine(
    base: Path, adapters: Mapping[str, Path], params: Params, slots: AdapterSlots | None = None
) -> EngineProcess:
    """An engine for the base and adapters beside it, with slots for adapters loaded while it runs."""
    return student_engine(ModelToServe(base, served_name("base", base), adapters, slots), params)


def tuned_engine(base: Path, tuned: Path, name: str, params: Params) -> EngineProcess:
    """An engine for one tuned student alone, under `name`."""
    return student_engine(ModelToServe(merged(base, tuned) if is_adapter(tuned) else tuned, name), params)


def student_engine(model: ModelToServe, params: Params) -> EngineProcess:
    """On the GPUs for a student whose `device` says so, else on the CPU."""
    student = params.student
    length = student.max_model_len if isinstance(student, PretrainedStudentSettings) else None
    placed = replace(model, on_gpus=params.student_on_gpus, max_model_len=length)
    return prepare(KINDS[params.engine.kind], placed, params.runtime)


def merged(base: Path, adapter: Path) -> Path:
    """The folder of a base with an adapter folded in, kept in .cache by their hashes; raises UserError where it can't
    be made.
    """
    folder = cache() / "merged" / f"{served_name('base', base)}-{served_name('adapter', adapter)}"
    if not folder.is_dir():
        from stages.parts.students.weights import (
            merge_adapter,  # here, since it imports torch, which is needed this once
        )

        print(f"merging {adapter} into {base}", flush=True)
        try:
            with ProcessPoolExecutor(1, get_context("spawn")) as pool:  # the weights leave memory with the process
                pool.submit(merge_adapter, base, adapter, folder).result()
        except BrokenProcessPool:
            raise UserError(
                f"merging {adapter} into {base} was killed, most likely for memory: set runtime.weights to adapter"
            ) from None
    return folder


def students(base: Path, tuned: Mapping[str, Path], params: Params) -> Generator[tuple[str, ServedModel], None, None]:
    """ "base" and each tuned student's name, with an engine that runs and serves it until the next is asked for.

    Close the generator to end the engines. On a CPU two start at a time: a start keeps one core busy for most of a
    minute. GPUs have no room for two.
    """
    beside = {name: folder for name, folder in tuned.items() if shares_an_engine(folder, params)}
    alone = {name: folder for name, folder in tuned.items() if name not in beside}
    turns = [(tuple(["base", *beside]), partial(base_engine, base, beside, params))]
    turns += [
        ((name,), partial(tuned_engine, base, folder, served_name(name, folder), params))
        for name, folder in alone.items()
    ]
    ahead = 1 if isinstance(params.student, TinyStudentSettings) and params.runtime.port is None else 0
    with ExitStack() as ends:
        up: list[EngineProcess] = []
        for number, (names, _) in enumerate(turns):
            for _, make in turns[len(up) : number + ahead + 1]:
                up.append(make())
                ends.callback(up[-1].stop)
                up[-1].start()
            for engine in up[number:]:  # none is asked while another starts: answers are timed
                engine.wait_until_up()
            with running(up[number]) as served:
                for name in names:
                    yield name, replace(served, names={name: served.names.get(name, served.names["base"])})
