"""Served queries: as rows of a folder for the next run, taken over from another service's log, or deleted.

python -m stages.parts.traffic export FOLDER               # adds served.csv: texts, and the teacher's labels if known
python -m stages.parts.traffic import LOG.jsonl FOLDER     # the same from OpenAI-style requests and responses
python -m stages.parts.traffic relabel [--share 0.2]       # after a change of labels.csv: which answers are kept
python -m stages.parts.traffic compare                     # the served student and its shadow
python -m stages.parts.traffic retrain [-S lora.r=16 ...]  # a new student from the pool and the served queries
python -m stages.parts.traffic purge [--older-than-days 7]
"""

import argparse
import time
from collections.abc import Sequence
from pathlib import Path

from stages.parts.run.commands import command
from stages.parts.run.errors import UserError
from stages.parts.run.params import Params, load_params
from stages.parts.run.paths import TRAFFIC
from stages.parts.traffic.rows import add_served, logged_rows, stored_rows
from stages.parts.traffic.store import DAY_S, TrafficStore


def open_store() -> TrafficStore:
    """Return the service's store; raises UserError if there is none."""
    if not TRAFFIC.exists():
        raise UserError(f"{TRAFFIC} does not exist: no query was stored (serve.keep)")
    settings = load_params().serve
    return TrafficStore(TRAFFIC, settings.keep_days, settings.keep_rows)


def show_retrained(params: Params, store: TrafficStore, settings: Sequence[str]) -> None:
    """Retrain, and print how the new student compares with the served one and what to do next."""
    from stages.parts.students.local import held_out_file, load_local, served_folder  # these and DVC: seconds
    from stages.parts.traffic.retrain import replayed, retrain
    from stages.parts.traffic.shadow import compared_live, compared_on_gold

    served = served_folder(params)
    found = retrain(params, store, settings)
    print(f"\n{found.name} serves its {found.choice.serve}: {found.choice.why}")
    print("below, `student` is the served one and `shadow` the new one")
    print(compared_on_gold(held_out_file(served), found.held_out))
    if served and found.folder:
        print(compared_live(replayed(store, load_local(served), load_local(found.folder))))
    else:
        print("live: not compared, since an engine has to answer for the decoder")
    if found.folder:
        print(f"on live queries, unseen: set serve.shadow to {found.folder}, then `python -m {__package__} compare`")
        print(f"serve it: make promote STUDENT={found.folder}")
    else:
        print("serve it: start the service again after the next line")
    print(f"the whole run: dvc exp apply {found.name}")


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m stages.parts.traffic", description=__doc__.splitlines()[0])
    commands = parser.add_subparsers(
        dest="command", metavar="export | import | relabel | compare | retrain | purge", required=True
    )
    exporting = commands.add_parser("export", help="write stored queries to served.csv of a folder with pool and gold")
    importing = commands.add_parser("import", help="write the queries of a request log to served.csv of such a folder")
    importing.add_argument("log", type=Path, help="JSON lines with `request` and `response` of /v1/chat/completions")
    for subparser in (exporting, importing):
        subparser.add_argument("folder", type=Path)
    relabelling = commands.add_parser(
        "relabel", help="keep the teacher's answers that a change of labels.csv can't touch"
    )
    relabelling.add_argument("--share", type=float, default=0.2, help="of the pool, at most, to query again (0 to 1)")
    commands.add_parser("compare", help="the served student and serve.shadow, on stored queries and on gold rows")
    commands.add_parser("retrain", help="run the pipeline with the stored queries; further arguments go to dvc exp run")
    purging = commands.add_parser("purge", help="delete stored queries; a running service may go on")
    purging.add_argument("--older-than-days", type=float, help="keep the newer ones (default: delete all)")
    given, settings = parser.parse_known_args()
    if settings and given.command != "retrain":
        parser.error(f"unrecognized arguments: {' '.join(settings)}")
    with command("traffic"):
        if given.command == "purge":
            days = given.older_than_days
            with open_store() as store:
                deleted = store.purge(None if days is None else time.time() - days * DAY_S)
                print(f"{deleted} rows deleted, {len(store)} kept in {TRAFFIC}")
            return
        if given.command == "relabel":
            from stages.parts.traffic.relabel import relabel  # this and scikit-learn: a second

            if not 0 <= given.share <= 1:
                raise UserError(f"--share {given.share} is no share: give a number from 0 to 1")
            found = relabel(load_params(), given.share)
            added = ", ".join(found.changes.added) or "none"
            print(f"the teacher is queried again for {found.again} of {found.rows} pool rows; new labels: {added}")
            return
        if given.command == "compare":
            from stages.parts.students.local import held_out_file, served_folder  # onnxruntime
            from stages.parts.traffic.shadow import compared_live, compared_on_gold

            params = load_params()
            shadow = params.serve.shadow
            if not shadow:
                raise UserError("no student to compare with: set serve.shadow to its folder, and serve.keep to all")
            with open_store() as store:
                print(compared_live(store.shadowed()))
            print(compared_on_gold(held_out_file(served_folder(params)), held_out_file(Path(shadow))))
            return
        if given.command == "retrain":
            with open_store() as store:
                show_retrained(load_params(), store, settings)
            return
        columns = load_params().raw
        if given.command == "export":
            with open_store() as store:
                rows, labelled = add_served(given.folder, stored_rows(store), columns.text_column, columns.label_column)
        else:
            logged = logged_rows(given.log)
            rows, labelled = add_served(given.folder, logged, columns.text_column, columns.label_column)
        print(f"{given.folder}/served.csv holds {rows} texts, {labelled} of them with the teacher's label")


if __name__ == "__main__":
    main()
