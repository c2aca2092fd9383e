"""Delete stored queries, and the answers to them: all, or those older than some days.

python -m stages.parts.traffic purge [--older-than-days 7]
"""

import argparse
import time

from stages.parts.run.commands import command
from stages.parts.run.errors import UserError
from stages.parts.run.params import load_params
from stages.parts.run.paths import TRAFFIC
from stages.parts.traffic.store import DAY_S, TrafficStore


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m stages.parts.traffic", description=__doc__.splitlines()[0])
    commands = parser.add_subparsers(dest="command", metavar="purge", required=True)
    purging = commands.add_parser("purge", help="delete stored queries; a running service may go on")
    purging.add_argument("--older-than-days", type=float, help="keep the newer ones (default: delete all)")
    days = parser.parse_args().older_than_days
    with command("traffic"):
        if not TRAFFIC.exists():
            raise UserError(f"{TRAFFIC} does not exist: no query was stored (serve.keep)")
        settings = load_params().serve
        with TrafficStore(TRAFFIC, settings.keep_days, settings.keep_rows) as store:
            deleted = store.purge(None if days is None else time.time() - days * DAY_S)
            print(f"{deleted} rows deleted, {len(store)} kept in {TRAFFIC}")


if __name__ == "__main__":
    main()
