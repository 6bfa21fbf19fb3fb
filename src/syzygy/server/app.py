"""The routes. Paths begin with /v1 as OpenAI's; what is ours alone stands beside them."""

import logging
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

from fastapi import Depends, FastAPI, Request
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.responses import HTMLResponse, PlainTextResponse, Response

from syzygy.core.errors import UserError
from syzygy.server import documentation, page_assets, recipes, uploads
from syzygy.server.engine import Studio
from syzygy.server.limits import Limits
from syzygy.server.metrics import Metrics
from syzygy.server.problems import Json, Problem, about, problem_of
from syzygy.server.requests import Order
from syzygy.server.responses import Errand, EventStream, whole
from syzygy.server.schema import Common, Edit, Form, Generation, Mix, Variation, multipart
from syzygy.server.security import LOOPBACK, Guard
from syzygy.server.validation import PAINTED_ANEW, Desk, form_of, invalid
from syzygy.server.worker import Worker

log = logging.getLogger(__name__)
ABOUT = """Pictures of prompts, in the dialect of OpenAI's images API, with what Syzygy can do beside it."""
FILES = {"image": "A picture: PNG, JPEG or WebP.", "mask": "A PNG of the same size, transparent where the phrase goes."}
ERRORS: dict[int | str, dict[str, Any]] = {
    400: {"description": "What was asked cannot be painted; `error.message` says why, and what is allowed."},
    401: {"description": "The API key is missing or wrong."},
    404: {"description": "No such model."},
    408: {"description": "The body did not arrive in time."},
    413: {"description": "The body is too large."},
    415: {"description": "The body is of another type."},
    429: {"description": "The queue is full; the header Retry-After says when to come again, in seconds."},
    500: {
        "description": "The model or the server failed; with the code `non_finite_values` the model computed NaN or infinity."
    },
    503: {"description": "The server is shutting down."},
}


def _is_json(request: Request) -> None:
    """Raises Problem for a body of another type: `curl -d` says that it sends a form."""
    kind = request.headers.get("content-type", "application/json").partition(";")[0].strip().lower()
    if kind != "application/json" and not (kind.startswith("application/") and kind.endswith("+json")):
        raise Problem(
            415,
            f"the body must be JSON, sent with the header Content-Type: application/json, got {kind[:80] or 'no type'!r}. "
            "With curl: -H 'Content-Type: application/json'.",
            code="unsupported_media_type",
        )


JSON_BODY = Depends(_is_json)


class Server:
    """What the routes share."""

    def __init__(self, studio: Studio, limits: Limits, batch_size: int) -> None:
        self.studio, self.limits, self.metrics = studio, limits, Metrics()
        self.desk = Desk(studio, limits)
        self.worker = Worker(studio, self.metrics, queue=limits.queue, batch_size=batch_size)
        self.since = int(time.time())

    @property
    def card(self) -> dict[str, Any]:
        """The model as `GET /v1/models` tells it."""
        own = {"id": self.studio.name, "object": "model", "created": self.since, "owned_by": "syzygy"}
        return {**own, "capabilities": self.desk.about, "limits": self.limits.model_dump()}

    async def answer(
        self, request: Request, asked: Common, order: Order, kind: str, notes: Sequence[str] = ()
    ) -> Response:
        """Queue an order, and answer with what becomes of it."""
        told = [*notes, *self.desk.notes(order)]
        errand = Errand(self.worker, self.metrics, order)
        if asked.stream:
            return EventStream(errand, kind, self.desk.size(order), told, asked.progress)
        return await whole(errand, request.receive, self.desk.size(order), told)


def create_app(
    studio: Studio,
    limits: Limits = Limits(),  # noqa: B008 (frozen)
    *,
    batch_size: int = 8,
    api_key: str | None = None,
    hosts: Sequence[str] | None = LOOPBACK,
) -> FastAPI:
    """An ASGI application that paints with this model; the worker runs while the application does.

    Args:
        batch_size: pictures that are painted at a time.
        api_key: what clients must send as `Authorization: Bearer …`; None lets everybody in.
        hosts: names in the header Host that are answered; None answers all.
    """
    server = Server(studio, limits, batch_size)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        server.worker.start()
        yield
        server.worker.close()
        server.desk.close()

    app = FastAPI(title="Syzygy", description=ABOUT, version="1", lifespan=lifespan, docs_url=None, redoc_url=None)
    app.state.server = server
    _tell_errors(app)
    _painting_routes(app, server)
    _other_routes(app, server)
    page_assets.attach(app)
    _document(app)
    paths = [path for route in app.routes if (path := getattr(route, "path", None))]
    app.add_middleware(Guard, limits=limits, metrics=server.metrics, paths=paths, api_key=api_key, hosts=hosts)
    return app


def _painting_routes(app: FastAPI, server: Server) -> None:
    desk = server.desk

    @app.post("/v1/images/generations", responses=ERRORS, tags=["images"], dependencies=[JSON_BODY])
    async def generations(asked: Generation, request: Request) -> Response:
        """Paint a prompt."""
        order = await desk.generation(asked)
        return await server.answer(request, asked, order, "image_generation")

    @app.post("/v1/images/edits", responses=ERRORS, tags=["images"], openapi_extra=multipart(Edit, FILES, ["image"]))
    async def edits(request: Request) -> Response:
        """Paint a prompt in the manner of a picture, a phrase where the mask is transparent. Nothing is kept pixel by pixel."""
        asked, files = await form_of(request, Edit, ["image", "mask"])
        order = await desk.edit(asked, _given(files), files.get("mask"))
        return await server.answer(request, asked, order, "image_edit", [PAINTED_ANEW])

    @app.post(
        "/v1/images/variations",
        responses=ERRORS,
        tags=["images"],
        openapi_extra=multipart(Variation, {"image": FILES["image"]}, ["image"]),
    )
    async def variations(request: Request) -> Response:
        """Paint a picture anew."""
        asked, files = await form_of(request, Variation, ["image"])
        order = await desk.variation(asked, _given(files))
        return await server.answer(request, asked, order, "image_generation")

    @app.post("/v1/images/mixes", responses=ERRORS, tags=["images"], dependencies=[JSON_BODY])
    async def mixes(asked: Mix, request: Request) -> Response:
        """Paint what lies between texts and pictures."""
        return await server.answer(request, asked, await desk.mix(asked), "image_generation")


def _given(files: dict[str, bytes]) -> bytes:
    if "image" not in files:
        raise Problem(400, "there is no picture: send one as the file 'image'.", param="image")
    return files["image"]


def _other_routes(app: FastAPI, server: Server) -> None:
    @app.post(
        "/v1/images/recipes",
        responses=ERRORS,
        tags=["images"],
        openapi_extra=multipart(Form, {"image": FILES["image"]}, ["image"]),
    )
    async def recipe(request: Request) -> Response:
        """How a picture was made: the record inside a PNG of ours, and the request that paints it again."""
        _, files = await form_of(request, Form, ["image"])
        data = _given(files)

        def read() -> dict[str, Any]:
            with about("image"):
                record = uploads.recipe(data, "the picture", server.limits)
            return {"record": record, **recipes.again(record, server.studio.record, server.desk.own_size)}

        return Json(await server.desk.decoded(read))

    @app.get("/v1/models", tags=["models"])
    async def models() -> Response:
        """The one model, what it can do, and the server's limits."""
        return Json({"object": "list", "data": [server.card]})

    @app.get("/v1/models/{name:path}", responses={404: ERRORS[404]}, tags=["models"])
    async def model(name: str) -> Response:
        """One model by its id."""
        if not name.strip("/"):
            return await models()
        if name != server.studio.name:
            raise Problem(404, f"there is no model {name[:80]!r} here.", param="model", code="model_not_found")
        return Json(server.card)

    @app.get("/healthz", tags=["operation"])
    async def healthz() -> Response:
        """Answers when the model is loaded."""
        return Json({"status": "ok", "model": server.studio.name})

    @app.get("/docs", include_in_schema=False)
    async def docs() -> Response:
        return HTMLResponse(documentation.page(app.openapi()))

    @app.get("/metrics", tags=["operation"], response_class=PlainTextResponse)
    async def metrics() -> Response:
        """Counts for Prometheus."""
        gauges = {"queue_length": server.worker.waiting, "requests_painting": server.worker.painting}
        text = server.metrics.text(gauges)
        return PlainTextResponse(text, media_type="text/plain; version=0.0.4")


def _tell_errors(app: FastAPI) -> None:
    @app.exception_handler(RequestValidationError)
    async def on_invalid(_request: Request, error: RequestValidationError) -> Response:
        return invalid(error.errors()).response()

    @app.exception_handler(HTTPException)
    async def on_http(_request: Request, error: HTTPException) -> Response:
        answer = Problem(error.status_code, f"{error.detail}.").response()
        answer.headers.update(error.headers or {})
        return answer

    @app.exception_handler(Problem)
    async def on_problem(_request: Request, error: Problem) -> Response:
        return error.response()

    @app.exception_handler(UserError)
    async def on_mistake(_request: Request, error: UserError) -> Response:
        return problem_of(error).response()

    @app.exception_handler(Exception)
    async def on_bug(_request: Request, error: Exception) -> Response:
        return problem_of(error).response()


def _document(app: FastAPI) -> None:
    """FastAPI documents its own form of errors (422), which is not ours."""
    described = app.openapi

    def ours() -> dict[str, Any]:
        schema = described()
        for operations in schema["paths"].values():
            for operation in operations.values():
                operation["responses"].pop("422", None)
        for name in ("HTTPValidationError", "ValidationError"):
            schema.get("components", {}).get("schemas", {}).pop(name, None)
        return schema

    app.openapi = ours
