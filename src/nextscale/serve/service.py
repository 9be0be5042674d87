"""What all routes share."""

from __future__ import annotations

from dataclasses import dataclass

from starlette.requests import Request

from nextscale.serve.engine import Engine
from nextscale.serve.errors import ApiError, of_order
from nextscale.serve.metrics import Metrics
from nextscale.serve.order import Order, OrderError
from nextscale.serve.settings import ServerSettings
from nextscale.serve.waiting import Waiting


@dataclass(frozen=True)
class Service:
    """One model behind one engine."""

    engine: Engine
    settings: ServerSettings
    name: str  #: of the model
    created: int  #: Unix time of the start
    metrics: Metrics
    model_digest: str = ""  #: `nextscale.generate.folder.model_digest`; empty: pictures carry no record

    @property
    def size(self) -> tuple[int, int]:
        """(H, W) of its pictures."""
        return self.engine.generator.tokenizer.image_size

    def check_count(self, count: int) -> None:
        """Refuse more pictures than one request may have."""
        most = min(self.settings.max_images, self.engine.settings.max_batch)
        if count > most:
            raise ApiError(
                400, f"n {count} is out of range: expected 1 to {most}", code="too_many", param="n"
            )

    def submit(self, order: Order) -> Waiting:
        """Hand an order to the engine. Raises ApiError."""
        try:
            return self.engine.submit(order)
        except OrderError as error:
            raise of_order(error) from error
        except ValueError as error:
            raise ApiError(400, str(error), code="invalid_value") from error


def service_of(request: Request) -> Service:
    """The service of the app that got a request."""
    service: Service = request.app.state.service
    return service
