"""Run the Hub as a process of its own: `python -m hub --root DIR --port N --user ada:hf_ada`."""

import argparse
import signal
import threading

from . import Hub


def main() -> None:
    parser = argparse.ArgumentParser(prog="hub", description=__doc__)
    parser.add_argument("--root", required=True, help="folder for all that is stored")
    parser.add_argument("--port", type=int, default=0, help="loopback port (default: a free one)")
    parser.add_argument("--user", action="append", default=[], metavar="NAME:TOKEN", help="may be repeated")
    parser.add_argument("--model", action="append", default=[], metavar="ID=FOLDER", help="may be repeated")
    parser.add_argument("--dataset", action="append", default=[], metavar="ID=FOLDER", help="may be repeated")
    options = parser.parse_args()

    stop = threading.Event()
    for sign in (signal.SIGINT, signal.SIGTERM):
        signal.signal(sign, lambda *_: stop.set())
    with Hub(options.root, port=options.port) as hub:
        for user in options.user:
            hub.add_user(*user.split(":", 1))
        for repo_type in ("model", "dataset"):
            for repo in getattr(options, repo_type):
                hub.add_repo(*repo.split("=", 1), type=repo_type)
        print(hub.url, flush=True)
        stop.wait()


if __name__ == "__main__":
    main()
