"""Look at the rows that the teacher may have labelled wrongly, in a browser; the next `dvc repro` learns from what you
decide.

python -m stages.parts.review [--rows 100] [--port 8010]
"""

import argparse

import uvicorn

from stages.parts.review.app import create_app
from stages.parts.review.desk import Desk
from stages.parts.review.waiting import waiting_rows
from stages.parts.run import paths
from stages.parts.run.commands import command
from stages.parts.run.files import read_json
from stages.parts.run.machine import check_port
from stages.parts.run.params import load_params


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m stages.parts.review", description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=100, help="how many to look at (default: 100)")
    parser.add_argument("--port", type=int, default=8010, help="on 127.0.0.1 (default: 8010)")
    given = parser.parse_args()
    with command("review"):
        check_port(given.port, "127.0.0.1")
        desk = Desk(waiting_rows(load_params(), given.rows), read_json(paths.LABELS), paths.DECISIONS)
    print(
        f"review {len(desk.waiting)} rows on http://127.0.0.1:{given.port}; Ctrl-C ends it, decisions are in "
        f"{paths.DECISIONS}",
        flush=True,
    )
    uvicorn.run(create_app(desk), host="127.0.0.1", port=given.port, log_level="warning", access_log=False)


if __name__ == "__main__":
    main()
