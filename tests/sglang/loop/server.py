"""A whole SGLang server without a GPU: HTTP, tokenizer, two schedulers with a tiny model, detokenizer.

python server.py FOLDER [options of SGLang]    the model is written to FOLDER
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

import sums

from lazycast.tools.bench.sglang_loop import on_cpu, tiny

on_cpu.prepare()  # in each process that the server starts, too
sums.install(os.environ.get(sums.SUMS, "forward"))


def main(folder: str, *switches: str) -> None:
    from sglang.srt.entrypoints.http_server import launch_server
    from sglang.srt.plugins import load_plugins
    from sglang.srt.server_args import prepare_server_args

    load_plugins()
    model = tiny.write(Path(folder))
    sums.newer(model)
    arguments = prepare_server_args(["--model-path", str(model), "--tp", "2", *on_cpu.ARGUMENTS, *switches])
    arguments.resolve_once()
    launch_server(arguments)


if __name__ == "__main__":
    main(*sys.argv[1:])
