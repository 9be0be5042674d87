"""The Images API that the `openai` clients speak: ``/v1/images/...`` and ``/v1/models``.

Special here: a prompt is the name or number of a class. Previews on the way are scales: of S, evenly spread
ones before the last. Fields beyond that API go through the client's ``extra_body``.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Form, UploadFile
from starlette.requests import Request
from starlette.responses import Response

from nextscale.serve.carried import as_texts
from nextscale.serve.errors import ApiError
from nextscale.serve.events import Stream, event, finished
from nextscale.serve.order import EditOrder, Order, Update
from nextscale.serve.orders import edit_order, label_of, name_of_label, sampling_of, seeds_from
from nextscale.serve.schema import Edit, Generation, Model, Models, Picture, Pictures, Usage
from nextscale.serve.service import Service, service_of

router = APIRouter(prefix="/v1", tags=["Images API"])
Served = Annotated[Service, Depends(service_of)]


@router.get("/models", response_model=Models)
async def list_models(service: Served) -> Models:
    """The model that is served."""
    return Models(data=[_model(service)])


@router.get("/models/{name:path}", response_model=Model)
async def get_model(name: str, service: Served) -> Model:
    """One model."""
    _check_model(name, service)
    return _model(service)


@router.post("/images/generations", response_model=Pictures)
async def generate(body: Generation, request: Request, service: Served) -> Any:
    """Pictures of a class; with ``stream`` as events."""
    _check(body, service)
    return await _answer(body, None, request, service)


@router.post("/images/edits", response_model=Pictures)
async def edit(body: Annotated[Edit, Form()], request: Request, service: Served) -> Any:
    """Pictures of which some part is that of a given one; with ``stream`` as events."""
    _check(body, service)
    uploads = [upload for upload in (body.image, *(body.images or [])) if upload is not None]
    if len(uploads) != 1:
        message = f"{len(uploads)} images: expected one, as image or image[]"
        raise ApiError(400, message, code="invalid_value", param="image")
    wanted = await read_edit(body, uploads[0], body.mask, service)
    return await _answer(body, wanted, request, service)


async def read_edit(
    body: Any, image: UploadFile, mask: UploadFile | None, service: Service
) -> EditOrder:  # fmt: skip
    """What of an uploaded picture stays. Raises ApiError."""
    content, transparent = await image.read(), await mask.read() if mask is not None else None
    most = service.settings.max_pixels
    try:
        return await asyncio.to_thread(
            edit_order, body, content, transparent, service.size, max_pixels=most
        )  # fmt: skip
    except ValueError as error:
        raise ApiError(400, str(error), code="invalid_image", param="image") from error


def _check(body: Generation | Edit, service: Service) -> None:
    """Refuse what can be refused before a picture is decoded. Raises ApiError."""
    _check_model(body.model, service)
    _check_size(body.size, service)
    if body.output_compression is not None and (body.output_format or "png") == "png":
        message = "output_compression would have no effect on png: leave it out, or ask for jpeg or webp"
        raise ApiError(400, message, code="invalid_value", param="output_compression")
    if body.partial_images is not None and not body.stream:
        message = "partial_images would have no effect without stream: leave it out, or set stream"
        raise ApiError(400, message, code="invalid_value", param="partial_images")
    service.check_count(body.n or 1)


async def _answer(
    body: Generation | Edit, wanted: EditOrder | None, request: Request, service: Service
) -> Any:  # fmt: skip
    count, names = body.n or 1, service.engine.generator.class_names
    order = Order(
        labels=(label_of(body.prompt, names),) * count, seeds=seeds_from(body.seed, count),
        sampling=sampling_of(body), edit=wanted, previews=body.partial_images or 0,
        deadline_s=body.deadline_s,
    )  # fmt: skip
    ticket = service.submit(order)
    if body.stream:
        return Stream(ticket, lambda update, number: _events(body, order, update, number, service))
    update = await finished(request, ticket)
    pictures = await asyncio.to_thread(_texts, update, order, body, service)
    prompt = name_of_label(order.labels[0], names)
    answer = Pictures(
        created=int(time.time()),
        data=[
            Picture(b64_json=text, revised_prompt=prompt, seed=seed)
            for text, seed in zip(pictures, order.seeds, strict=True)
        ],
        output_format=body.output_format or "png", size=_size_of(service), usage=_usage(order, service),
        settings=service.engine.generator.sampling(order.sampling),
    )  # fmt: skip
    return Response(answer.model_dump_json(), media_type="application/json")


async def _events(
    body: Generation | Edit, order: Order, update: Update, number: int, service: Service
) -> AsyncIterator[bytes]:
    """One event per picture."""
    kind = "image_generation" if order.edit is None else "image_edit"
    name = f"{kind}.completed" if update.finished else f"{kind}.partial_image"
    common = {
        "type": name, "background": "opaque", "output_format": body.output_format or "png",
        "quality": "auto", "size": _size_of(service), "created_at": int(time.time()), "scale": update.scale,
    }  # fmt: skip
    if update.finished:
        common["usage"] = _usage(order, service).model_dump()
    else:
        common["partial_image_index"] = number
    texts = await asyncio.to_thread(_texts, update, order, body, service)
    for place, (text, seed) in enumerate(zip(texts, order.seeds, strict=True)):
        yield event(name, {**common, "b64_json": text, "image_index": place, "seed": seed})


def _texts(update: Update, order: Order, body: Generation | Edit, service: Service) -> list[str]:
    return as_texts(update, order, service, body.output_format or "png", body.output_compression)


def _usage(order: Order, service: Service) -> Usage:
    tokens = len(order.seeds) * service.engine.generator.settings.schedule.num_tokens
    return Usage(output_tokens=tokens, total_tokens=tokens)


def _model(service: Service) -> Model:
    return Model(id=service.name, created=service.created)


def _check_model(name: str | None, service: Service) -> None:
    if name and name != service.name:
        message = f"model {name!r} is not served here: {service.name!r} is"
        raise ApiError(404, message, code="model_not_found", param="model")


def _size_of(service: Service) -> str:
    height, width = service.size
    return f"{width}x{height}"


def _check_size(size: str | None, service: Service) -> None:
    if size not in (None, "auto", _size_of(service)):
        message = f"size {size!r}: this model makes {_size_of(service)}; give that, or auto"
        raise ApiError(400, message, code="invalid_value", param="size")
