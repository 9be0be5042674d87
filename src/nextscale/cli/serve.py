"""``nextscale serve``."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError

from nextscale.serve.settings import EngineSettings, ServerSettings


def run(options: argparse.Namespace, rest: Sequence[str]) -> None:
    """Serve a model, or make a key."""
    if options.new_key is not None:
        return _make_key(options.new_key)
    if options.model is None:
        raise ValueError("give a model to serve, for example: nextscale serve cifar10-tiny")
    engine = _settings(
        EngineSettings, max_batch=options.max_batch, max_queue=options.max_queue, deadline_s=options.deadline
    )
    server = _settings(
        ServerSettings, host=options.host, port=options.port, rate=options.rate, grace_s=options.grace,
        keys=Path(options.keys) if options.keys else None, max_images=options.max_images,
        max_body=int(options.max_body * 2**20), max_pixels=int(options.max_pixels * 1e6),
    )  # fmt: skip
    try:
        from nextscale.serve.running import build_app, run_server
    except ModuleNotFoundError as error:
        if (error.name or "").split(".")[0] not in ("fastapi", "uvicorn", "prometheus_client"):
            raise
        raise ValueError(f"{error.name} is missing: pip install 'nextscale[serve]'") from error
    from nextscale.distributed import choose_device
    from nextscale.generate.generator import Generator

    generator = Generator.load(options.model, device=choose_device(options.device), dtype=options.dtype)
    name = options.name or Path(options.model).name
    app = build_app(generator, name, engine=engine, server=server)
    run_server(app, server, say=lambda address: print(f"{name}: {address}", flush=True))
    return None


def _settings(kind: type[Any], **values: Any) -> Any:
    try:
        assert issubclass(kind, BaseModel)
        return kind(**values)
    except ValidationError as error:
        first = error.errors()[0]
        option = str(first["loc"][0]).removesuffix("_s").replace("_", "-")
        raise ValueError(f"--{option} {first['input']}: {first['msg']}") from error


def _make_key(name: str) -> None:
    from nextscale.serve.keys import new_key

    key, line = new_key(name)
    sys.stderr.write(f"the key, which is shown this once: {key}\n")
    print(line)
