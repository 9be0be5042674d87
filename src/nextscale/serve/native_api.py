"""A small API of our own: every scale of every picture, as it is made."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Annotated, Any, get_args

from fastapi import APIRouter, Depends, Form
from starlette.requests import Request
from starlette.responses import JSONResponse

from nextscale.generate.settings import Task
from nextscale.serve.carried import as_texts
from nextscale.serve.errors import ApiError
from nextscale.serve.events import Stream, event, finished
from nextscale.serve.images_api import read_edit
from nextscale.serve.order import ALL, Order, Update
from nextscale.serve.orders import label_of, sampling_of, seeds_from
from nextscale.serve.schema import ModelCard, NativeEdit, NativeGeneration
from nextscale.serve.service import Service, service_of
from nextscale.serve.waiting import Waiting

router = APIRouter(prefix="/api", tags=["every scale"])
Served = Annotated[Service, Depends(service_of)]


@router.get("/model", response_model=ModelCard)
async def model(service: Served) -> ModelCard:
    """What is served, and what it knows."""
    generator = service.engine.generator
    settings, (height, width) = generator.settings, service.size
    kind = settings.prior.kind if settings.prior else "none"
    return ModelCard(
        name=service.name, kind=kind, class_names=list(generator.class_names), height=height, width=width,
        scales=[list(size) for size in settings.schedule.sizes], sampling=generator.sampling({}),
        tasks=list(get_args(Task)) if kind == "next_scale" else [],
        dtype=str(generator.dtype).removeprefix("torch."),
        max_images=min(service.settings.max_images, service.engine.settings.max_batch),
    )  # fmt: skip


@router.post("/generate")
async def generate(body: NativeGeneration, request: Request, service: Served) -> Any:
    """One picture per label, every scale as an event."""
    count = len(body.labels)
    service.check_count(count)
    if body.seeds is not None and body.seed is not None:
        raise ApiError(400, "seed would have no effect beside seeds: leave one out", code="invalid_value")
    if body.seeds is not None and len(body.seeds) != count:
        raise ApiError(
            400, f"{len(body.seeds)} seeds for {count} labels: give one each", code="invalid_value"
        )
    seeds = tuple(body.seeds) if body.seeds is not None else seeds_from(body.seed, count)
    previews = ALL if body.stream else 0
    order = Order(
        tuple(body.labels), seeds, sampling_of(body), previews=previews, deadline_s=body.deadline_s
    )  # fmt: skip
    return await _answer(order, request, service)


@router.post("/edit")
async def edit(body: Annotated[NativeEdit, Form()], request: Request, service: Served) -> Any:
    """Pictures of which some part is that of a given one, every scale as an event."""
    service.check_count(body.n)
    wanted = await read_edit(body, body.image, body.mask, service)
    label = label_of(body.label, service.engine.generator.class_names)
    order = Order(
        (label,) * body.n, seeds_from(body.seed, body.n), sampling_of(body), wanted,
        ALL if body.stream else 0, body.deadline_s,
    )  # fmt: skip
    return await _answer(order, request, service)


async def _answer(order: Order, request: Request, service: Service) -> Any:
    ticket = service.submit(order)
    if order.previews:
        return Stream(ticket, lambda update, _: _events(update, ticket, service))
    return JSONResponse(await _fields(await finished(request, ticket), ticket, service))


async def _events(update: Update, ticket: Waiting, service: Service) -> AsyncIterator[bytes]:
    yield event("finished" if update.finished else "preview", await _fields(update, ticket, service))


async def _fields(update: Update, ticket: Waiting, service: Service) -> dict[str, Any]:
    images = await asyncio.to_thread(as_texts, update, ticket.order, service)
    return {
        "scale": update.scale, "num_scales": ticket.num_stages, "finished": update.finished,
        "seeds": list(ticket.order.seeds), "images": images,
    }  # fmt: skip
