"""The same app in several processes, on one machine or many: a Ray Serve deployment.

Special here: every replica has its own model, engine and queue, and Ray's router sends each request to one
of the less busy ones. A replica whose engine died, or that died itself, is replaced; what it was making is
answered with an error. Keys and limits are each replica's own, so that of n replicas a key may ask n times
its rate.
"""

from __future__ import annotations

import logging
import signal
import socket
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import ray
from fastapi import FastAPI
from ray import serve

from nextscale.generate.folder import model_digest
from nextscale.generate.generator import Generator
from nextscale.generate.precision import Dtype
from nextscale.models import find_model
from nextscale.serve.running import build_app, check_host
from nextscale.serve.settings import EngineSettings, ServerSettings

_NAME = "nextscale"


@dataclass(frozen=True)
class Served:
    """What every replica loads."""

    model: str  #: bundled name or folder, on every machine
    name: str  #: as clients call it
    device: str
    dtype: Dtype
    engine: EngineSettings
    server: ServerSettings
    verify_with: str = ""  #: see `Generator.load`


class Replica:
    """One process of the deployment."""

    def __init__(self, served: Served) -> None:
        generator = Generator.load(
            served.model, device=served.device, dtype=served.dtype, verify_with=served.verify_with
        )
        self._app = build_app(
            generator, served.name, engine=served.engine, server=served.server,
            model_digest=model_digest(find_model(served.model)),
        )  # fmt: skip

    def __serve_build_asgi_app__(self) -> FastAPI:
        return self._app

    def check_health(self) -> None:
        """Ray replaces a replica for which this raises."""
        state = self._app.state.service.engine.state()
        if not state.alive and not state.closing:
            raise RuntimeError("the engine has died")


def deployment(served: Served, replicas: tuple[int, int]) -> Any:
    """A Ray Serve application.

    Args:
        served: what every replica loads.
        replicas: the fewest and the most; Ray adds some while more than a batch waits at each.
    """
    fewest, most = replicas
    how_many: dict[str, Any] = {"num_replicas": fewest}
    if most > fewest:
        scaling = {"min_replicas": fewest, "max_replicas": most}
        how_many = {"autoscaling_config": scaling | {"target_ongoing_requests": served.engine.max_batch}}
    on_gpu = served.device.startswith("cuda")
    make: Any = serve.deployment(
        name=_NAME, **how_many,
        max_ongoing_requests=served.engine.max_queue,  # the engine itself says when it is full
        graceful_shutdown_timeout_s=served.server.grace_s + 5,
        health_check_period_s=2, ray_actor_options={"num_cpus": 1, "num_gpus": int(on_gpu)},
    )  # fmt: skip
    return make(serve.ingress()(Replica)).bind(served)


def run_replicas(served: Served, replicas: tuple[int, int], *, say: Callable[[str], None]) -> None:
    """Serve until SIGTERM or Ctrl-C, on the Ray cluster of this machine's environment, or one of its own.

    Raises:
        ValueError: no keys, and other machines may ask.
    """
    check_host(served.server)
    server, stop = served.server, threading.Event()
    port = server.port or _free_port(server.host)
    ray.init(include_dashboard=False, log_to_driver=False, logging_level=logging.WARNING)
    for number in (signal.SIGTERM, signal.SIGINT):  # Ray sets its own while it starts
        signal.signal(number, lambda *_: stop.set())
    try:
        serve.start(http_options={"host": server.host, "port": port})
        serve.run(deployment(served, replicas), name=_NAME, route_prefix="/")
        say(f"http://{server.host}:{port}")
        stop.wait()
    finally:
        serve.shutdown()  # type: ignore[no-untyped-call]
        ray.shutdown()


def _free_port(host: str) -> int:
    with socket.socket() as probe:
        probe.bind((host, 0))
        return int(probe.getsockname()[1])
