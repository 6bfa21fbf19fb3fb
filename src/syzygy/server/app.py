"""The routes. Paths start with /v1 as OpenAI's do, also where OpenAI has no such route."""

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
from syzygy.server.engine import Engine
from syzygy.server.limits import Limits
from syzygy.server.metrics import Metrics
from syzygy.server.problems import Json, Problem, field_errors, problem_of
from syzygy.server.requests import ImageRequest
from syzygy.server.responses import EventStream, RequestStream, complete
from syzygy.server.schema import Common, Edit, Form, Generation, Mix, Variation, multipart
from syzygy.server.security import LOOPBACK, SecurityMiddleware
from syzygy.server.validation import NOT_INPAINTED, Validator, form_of, invalid
from syzygy.server.worker import Worker

log = logging.getLogger(__name__)
ABOUT = """Generate images from prompts. The API is compatible with OpenAI's images API and extends it."""
FILES = {
    "image": "A picture: PNG, JPEG or WebP.",
    "mask": "A PNG of the same size, transparent where the phrase should appear.",
}
ERRORS: dict[int | str, dict[str, Any]] = {
    400: {"description": "The request is not valid; `error.message` says why, and what is allowed."},
    401: {"description": "The API key is missing or wrong."},
    404: {"description": "No such model."},
    408: {"description": "The body did not arrive in time."},
    413: {"description": "The body is too large."},
    415: {"description": "The body has an unsupported content type."},
    429: {"description": "The queue is full; the header Retry-After says after how many seconds to try again."},
    500: {
        "description": "The model or the server failed; with the code `non_finite_values` the model computed NaN or infinity."
    },
    503: {"description": "The server is shutting down."},
}


def _is_json(request: Request) -> None:
    """Raises Problem for another content type, such as the one that `curl -d` sends."""
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
    """The state that the routes share."""

    def __init__(self, engine: Engine, limits: Limits, batch_size: int) -> None:
        self.engine, self.limits, self.metrics = engine, limits, Metrics()
        self.validator = Validator(engine, limits)
        self.worker = Worker(engine, self.metrics, queue=limits.queue, batch_size=batch_size)
        self.since = int(time.time())

    @property
    def card(self) -> dict[str, Any]:
        """The model as `GET /v1/models` describes it."""
        own = {"id": self.engine.name, "object": "model", "created": self.since, "owned_by": "syzygy"}
        return {**own, "capabilities": self.validator.capabilities, "limits": self.limits.model_dump()}

    async def answer(
        self, request: Request, asked: Common, wanted: ImageRequest, kind: str, notes: Sequence[str] = ()
    ) -> Response:
        """Queue a request and answer with its images."""
        warnings = [*notes, *self.validator.notes(wanted)]
        stream = RequestStream(self.worker, self.metrics, wanted)
        if asked.stream:
            return EventStream(stream, kind, self.validator.size(wanted), warnings, asked.progress)
        return await complete(stream, request.receive, self.validator.size(wanted), warnings)


def create_app(
    engine: Engine,
    limits: Limits = Limits(),  # noqa: B008 (frozen)
    *,
    batch_size: int = 8,
    api_key: str | None = None,
    hosts: Sequence[str] | None = LOOPBACK,
) -> FastAPI:
    """An ASGI application that generates images with this model; the worker runs while the application does.

    Args:
        batch_size: images that are generated at a time.
        api_key: the key that clients must send as `Authorization: Bearer …`; None requires none.
        hosts: allowed names in the header Host; None allows all.
    """
    server = Server(engine, limits, batch_size)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        server.worker.start()
        yield
        server.worker.close()
        server.validator.close()

    app = FastAPI(title="Syzygy", description=ABOUT, version="1", lifespan=lifespan, docs_url=None, redoc_url=None)
    app.state.server = server
    _handle_errors(app)
    _image_routes(app, server)
    _other_routes(app, server)
    page_assets.attach(app)
    _document(app)
    paths = [path for route in app.routes if (path := getattr(route, "path", None))]
    app.add_middleware(
        SecurityMiddleware, limits=limits, metrics=server.metrics, paths=paths, api_key=api_key, hosts=hosts
    )
    return app


def _image_routes(app: FastAPI, server: Server) -> None:
    validator = server.validator

    @app.post("/v1/images/generations", responses=ERRORS, tags=["images"], dependencies=[JSON_BODY])
    async def generations(asked: Generation, request: Request) -> Response:
        """Generate images from a prompt."""
        wanted = await validator.generation(asked)
        return await server.answer(request, asked, wanted, "image_generation")

    @app.post("/v1/images/edits", responses=ERRORS, tags=["images"], openapi_extra=multipart(Edit, FILES, ["image"]))
    async def edits(request: Request) -> Response:
        """Generate images from a prompt with a picture as style reference, and a phrase where the mask is transparent. This is no
        inpainting: none of the picture's pixels are kept."""
        asked, files = await form_of(request, Edit, ["image", "mask"])
        wanted = await validator.edit(asked, _image_of(files), files.get("mask"))
        return await server.answer(request, asked, wanted, "image_edit", [NOT_INPAINTED])

    @app.post(
        "/v1/images/variations",
        responses=ERRORS,
        tags=["images"],
        openapi_extra=multipart(Variation, {"image": FILES["image"]}, ["image"]),
    )
    async def variations(request: Request) -> Response:
        """Generate variations of a picture."""
        asked, files = await form_of(request, Variation, ["image"])
        wanted = await validator.variation(asked, _image_of(files))
        return await server.answer(request, asked, wanted, "image_generation")

    @app.post("/v1/images/mixes", responses=ERRORS, tags=["images"], dependencies=[JSON_BODY])
    async def mixes(asked: Mix, request: Request) -> Response:
        """Generate mixtures of texts and pictures."""
        return await server.answer(request, asked, await validator.mix(asked), "image_generation")


def _image_of(files: dict[str, bytes]) -> bytes:
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
        """The record inside an image that Syzygy generated, and the request that generates it again."""
        _, files = await form_of(request, Form, ["image"])
        data = _image_of(files)
        options = server.validator.capabilities["options"]

        def read() -> dict[str, Any]:
            with field_errors("image"):
                record = uploads.recipe(data, "the picture", server.limits)
            return {"record": record, **recipes.again(record, server.engine.record, server.validator.own_size, options)}

        return Json(await server.validator.decoded(read))

    @app.get("/v1/models", tags=["models"])
    async def models() -> Response:
        """The model, what it can do, and the server's limits."""
        return Json({"object": "list", "data": [server.card]})

    @app.get("/v1/models/{name:path}", responses={404: ERRORS[404]}, tags=["models"])
    async def model(name: str) -> Response:
        """One model by its id."""
        if not name.strip("/"):
            return await models()
        if name != server.engine.name:
            raise Problem(404, f"there is no model {name[:80]!r} here.", param="model", code="model_not_found")
        return Json(server.card)

    @app.get("/healthz", tags=["operation"])
    async def healthz() -> Response:
        """Answers when the model is loaded."""
        return Json({"status": "ok", "model": server.engine.name})

    @app.get("/docs", include_in_schema=False)
    async def docs() -> Response:
        return HTMLResponse(documentation.page(app.openapi()))

    @app.get("/metrics", tags=["operation"], response_class=PlainTextResponse)
    async def metrics() -> Response:
        """Metrics for Prometheus."""
        running = server.worker.running
        gauges = {"queue_length": server.worker.waiting, "requests_running": running}
        gauges["requests_painting"] = running  # the old name, for one release
        text = server.metrics.text(gauges)
        return PlainTextResponse(text, media_type="text/plain; version=0.0.4")


def _handle_errors(app: FastAPI) -> None:
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
    """Remove FastAPI's own errors (422) from the documentation: this server answers otherwise."""
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
