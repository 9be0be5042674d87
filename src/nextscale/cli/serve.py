"""``nextscale serve``."""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
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
    page = options.page == "yes" or (options.page == "auto" and not options.keys and not options.ray)
    if page and options.ray:
        raise ValueError("--page yes does not go with --ray: a page has sessions, replicas share none")
    if page and find_spec("gradio") is None:
        if options.page == "yes":
            raise ValueError("gradio is missing: pip install 'nextscale[demo]'")
        sys.stderr.write("nextscale: no page for browsers: pip install 'nextscale[demo]' for one\n")
        page = False
    server = _settings(
        ServerSettings, page=page, host=options.host,
        port=options.port, rate=options.rate, grace_s=options.grace,
        keys=Path(options.keys) if options.keys else None, max_images=options.max_images,
        max_body=int(options.max_body * 2**20), max_pixels=int(options.max_pixels * 1e6),
    )  # fmt: skip
    if options.replicas != "1" and not options.ray:
        raise ValueError(f"--replicas {options.replicas} would have no effect without --ray: leave it out")
    name = options.name or Path(options.model).name

    def say(address: str) -> None:
        print(f"{name}: {address}", flush=True)

    with _extra_needed("ray" if options.ray else "serve"):
        if options.ray:
            return _run_replicas(options, name, engine=engine, server=server, say=say)
        from nextscale.serve.running import build_app, run_server
    from nextscale.cli.sample import load_model
    from nextscale.generate.folder import model_digest
    from nextscale.models import find_model

    generator, digest = load_model(options), model_digest(find_model(options.model))
    run_server(build_app(generator, name, engine=engine, server=server, model_digest=digest), server, say=say)
    return None


def _run_replicas(
    options: argparse.Namespace, name: str, *, engine: EngineSettings, server: ServerSettings,
    say: Callable[[str], None],
) -> None:  # fmt: skip
    from nextscale.distributed import choose_device
    from nextscale.integrity.signatures import find_trusted_model
    from nextscale.serve.replicas import Served, run_replicas

    replicas = num_replicas(options.replicas)
    device = str(choose_device(options.device))
    # complains here rather than in every replica
    model = str(find_trusted_model(options.model, options.verify_with))
    served = Served(model, name, device, options.dtype, engine, server, options.verify_with)
    run_replicas(served, replicas, say=say)


def num_replicas(text: str) -> tuple[int, int]:
    """The fewest and the most replicas: "2", or "1-4".

    Raises:
        ValueError: neither of these.
    """
    found = re.fullmatch(r"([1-9]\d{0,3})(?:-([1-9]\d{0,3}))?", text)
    if not found or int(found[2] or found[1]) < int(found[1]):
        raise ValueError(f"--replicas {text!r}: expected their number, or the fewest and the most as 1-4")
    return int(found[1]), int(found[2] or found[1])


@contextmanager
def _extra_needed(extra: str) -> Iterator[None]:
    """Say what to install where a package is missing."""
    try:
        yield
    except ModuleNotFoundError as error:
        if (error.name or "").split(".")[0] not in ("fastapi", "uvicorn", "prometheus_client", "ray"):
            raise
        raise ValueError(f"{error.name} is missing: pip install 'nextscale[{extra}]'") from error


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
