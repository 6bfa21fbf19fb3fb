"""The routes. Paths start with /v1 as OpenAI's do, also where OpenAI has no such route."""

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from typing import Any, NamedTuple, TypeVar

from fastapi import FastAPI, Request
from starlette.exceptions import HTTPException
from starlette.responses import HTMLResponse, PlainTextResponse, Response

from syzygy.core.errors import UserError
from syzygy.server import documentation, memory, page_assets
from syzygy.server.admission import SMALL_BYTES, Admission
from syzygy.server.bodies import FORM, JSON, check_type, content_type, form_of, json_of, whole
from syzygy.server.edits import EditValidator
from syzygy.server.engine import ImageEngine
from syzygy.server.limits import Limits
from syzygy.server.metrics import Metrics
from syzygy.server.problems import SERVER, Json, Problem, problem_of
from syzygy.server.requests import ImageRequest
from syzygy.server.responses import About, EventStream, RequestStream, complete, in_thread
from syzygy.server.schema import (
    Common,
    Edit,
    Form,
    Generation,
    JsonEdit,
    Mix,
    Variation,
    form_body,
    form_content,
    json_body,
    json_schemas,
)
from syzygy.server.security import ENTRY, SecurityMiddleware, own_names
from syzygy.server.stored_images import StoredImages
from syzygy.server.validation import Validator, model_not_found
from syzygy.server.worker import Worker

T = TypeVar("T")
A = TypeVar("A", bound=Common)


ABOUT = """Generate images from prompts. The API is compatible with OpenAI's images API and extends it. Every answer has the header
x-request-id."""
IMAGE = {"image": "A picture: PNG, JPEG or WebP."}
EDITED = {
    "image": "The picture to edit, and further ones whose styles are mixed: PNG, JPEG or WebP. `image[]` is the same field.",
    "mask": "A PNG of the same size as the first picture, transparent where it should change.",
}
ERRORS: dict[int | str, dict[str, Any]] = {
    400: {"description": "The request is not valid; `error.message` says why, and what is allowed."},
    401: {"description": "The API key is missing or wrong."},
    404: {"description": "The server does not have this model."},
    408: {"description": "The body did not arrive in time."},
    413: {"description": "The body is too large."},
    415: {"description": "The body has an unsupported content type."},
    429: {
        "description": "The queue is full, or too many uploads arrive; the header Retry-After says after how many seconds to try again."
    },
    500: {
        "description": "The model or the server failed; with the code `non_finite_values` the model computed NaN or infinity."
    },
    503: {"description": "The server is shutting down, or the replica that computed the images was lost."},
}
NO_IMAGE = {"description": "There is no such image, or not any more."}


class Understood(NamedTuple):
    """A request, and how it is answered. The body is no longer part of it."""

    wanted: ImageRequest
    stream: bool
    progress: bool
    quality: str
    url: bool

    @classmethod
    def of(cls, wanted: ImageRequest, asked: Common) -> "Understood":
        """The request `wanted` that was found in what was `asked`."""
        return cls(wanted, asked.stream, asked.progress, asked.quality, asked.response_format == "url")


class Server:
    """The state that the routes share."""

    def __init__(self, engine: ImageEngine, limits: Limits, batch_size: int, aliases: Sequence[str]) -> None:
        self.engine, self.limits, self.metrics = engine, limits, Metrics()
        self.validator = Validator(engine.about, limits, aliases)
        self.stored = StoredImages(limits.stored)
        self.worker = Worker(engine, self.metrics, batch_size=batch_size)
        self.admission = Admission(limits, self.worker)
        self.decoder = ThreadPoolExecutor(1, thread_name_prefix="decoder")
        """Decodes pictures, and parses bodies that may hold some: one at a time, so that memory stays bounded."""
        self.connections: dict[Any, None] = {}
        """Those of the HTTP server, the oldest first."""
        self.since = int(time.time())

    def stop(self) -> None:
        """Answer everything that is not finished with status 503, and let nothing in any more. Called on the event loop."""
        self.admission.close()
        self.decoder.shutdown(wait=False, cancel_futures=True)
        self.worker.stop()

    @property
    def cards(self) -> dict[str, dict[str, Any]]:
        """The model as `GET /v1/models` describes it, by its id and its aliases."""
        own = {"object": "model", "created": self.since, "owned_by": "syzygy"}
        more = {"capabilities": self.validator.capabilities, "limits": self.limits.model_dump()}
        return {name: {"id": name, **own, **more} for name in self.validator.names}

    async def decode(self, request: Request, work: Callable[[], T]) -> T:
        """Run `work`, which holds the body, in the thread that decodes pictures. Afterwards the body counts as free."""

        def released() -> T:
            try:
                return work()
            finally:
                memory.release()

        try:
            return await in_thread(self.decoder, released, request.receive)
        finally:
            self.admission.decoded(request.scope[ENTRY])

    async def json(
        self,
        request: Request,
        model: type[A],
        understand: Callable[[A], ImageRequest],
        kind: str = "image_generation",
    ) -> Response:
        """Answer a request for images whose body is JSON."""
        check_type(request, JSON)
        return await self._answer(request, await self._understood(request, model, understand), kind)

    async def _understood(
        self, request: Request, model: type[A], understand: Callable[[A], ImageRequest]
    ) -> Understood:
        """A small body without pictures is understood at once, so that it does not wait for the uploads of others."""

        def understood(asked: A) -> Understood:
            return Understood.of(understand(asked), asked)

        body = await whole(request)
        if len(body) > SMALL_BYTES:
            return await self.decode(request, lambda: understood(json_of(body, model, self.limits)))
        asked = json_of(body, model, self.limits)
        return await self.decode(request, lambda: understood(asked)) if asked.pictures else understood(asked)

    async def form(
        self,
        request: Request,
        model: type[A],
        files: Mapping[str, int],
        understand: Callable[[A, dict[str, list[bytes]]], ImageRequest],
        kind: str,
    ) -> Response:
        """Answer a request for images whose body is a form with files."""

        async def understood() -> Understood:
            asked, found = await form_of(request, model, files)
            return await self.decode(request, lambda: Understood.of(understand(asked, found), asked))

        return await self._answer(request, await understood(), kind)

    async def _answer(self, request: Request, understood: Understood, kind: str) -> Response:
        """Queue a request and answer with its images."""
        wanted, validator = understood.wanted, self.validator
        size, output = validator.size(wanted) or "auto", wanted.format.name
        about = About(kind, size, understood.quality, output, validator.notes(wanted))
        stream = RequestStream(self.worker, self.metrics, wanted)
        if understood.stream:
            return EventStream(stream, about, understood.progress)

        def url_of(file: bytes) -> str:
            return str(request.url_for("stored_image", name=self.stored.put(file, f"image/{output}")))

        return await complete(stream, request.receive, about, url_of if understood.url else None)


def create_app(
    engine: ImageEngine,
    limits: Limits = Limits(),  # noqa: B008 (frozen)
    *,
    batch_size: int = 8,
    aliases: Sequence[str] = (),
    api_key: str | None = None,
    hosts: Sequence[str] | None = (),
) -> FastAPI:
    """An ASGI application that generates images with this model; the worker runs while the application does.

    Args:
        batch_size: images that are generated at a time.
        aliases: further names of the model that requests may use.
        api_key: the key that clients must send as `Authorization: Bearer …`; None requires none.
        hosts: names in the header Host that are answered besides this machine's own; None answers all.
    """
    server = Server(engine, limits, batch_size, aliases)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        server.worker.start()
        yield
        server.stop()
        server.decoder.shutdown()
        server.worker.close()

    app = FastAPI(title="Syzygy", description=ABOUT, version="1", lifespan=lifespan, docs_url=None, redoc_url=None)
    app.state.server = server
    _handle_errors(app)
    _image_routes(app, server)
    _other_routes(app, server)
    page_assets.attach(app)
    _document(app)
    paths = [path for route in app.routes if (path := getattr(route, "path", None))]
    app.add_middleware(
        SecurityMiddleware,
        admission=server.admission,
        metrics=server.metrics,
        paths=paths,
        api_key=api_key,
        hosts=None if hosts is None else own_names(*hosts),
    )
    return app


def _image_routes(app: FastAPI, server: Server) -> None:
    validator = server.validator

    @app.post("/v1/images/generations", responses=ERRORS, tags=["images"], openapi_extra=json_body(Generation))
    async def generations(request: Request) -> Response:
        """Generate images from a prompt."""
        return await server.json(request, Generation, validator.generation)

    editor, most = EditValidator(validator), {"image": server.limits.sources, "mask": 1}

    @app.post("/v1/images/edits", responses=ERRORS, tags=["images"], openapi_extra=_edit_body(most))
    async def edits(request: Request) -> Response:
        """Repaint a picture where the mask is transparent, or change all of it. With a model that cannot, pictures are the style reference
        of a new image, and a phrase appears where the mask is transparent; a warning says so."""
        check_type(request, FORM, JSON)
        if content_type(request) == JSON:
            return await server.json(request, JsonEdit, editor.json, "image_edit")

        def edited(asked: Edit, files: dict[str, list[bytes]]) -> ImageRequest:
            (mask,) = files.get("mask", [None])
            return editor.form(asked, _images_of(files), mask)

        return await server.form(request, Edit, most, edited, "image_edit")

    @app.post("/v1/images/variations", responses=ERRORS, tags=["images"], openapi_extra=form_body(Variation, IMAGE))
    async def variations(request: Request) -> Response:
        """Generate variations of a picture."""

        def varied(asked: Variation, files: dict[str, list[bytes]]) -> ImageRequest:
            return validator.variation(asked, _images_of(files)[0])

        return await server.form(request, Variation, {"image": 1}, varied, "image_generation")

    @app.post("/v1/images/mixes", responses=ERRORS, tags=["images"], openapi_extra=json_body(Mix))
    async def mixes(request: Request) -> Response:
        """Generate mixtures of texts and pictures."""
        return await server.json(request, Mix, validator.mix)

    @app.post("/v1/images/recipes", responses=ERRORS, tags=["images"], openapi_extra=form_body(Form, IMAGE))
    async def recipe(request: Request) -> Response:
        """The record inside an image that Syzygy generated, and the request that generates it again."""
        _, files = await form_of(request, Form, {"image": 1})
        return Json(await server.decode(request, lambda: validator.recipe(_images_of(files)[0])))

    @app.get("/v1/images/files/{name}", responses={401: ERRORS[401], 404: NO_IMAGE}, tags=["images"])
    async def stored_image(name: str) -> Response:
        """An image whose URL was in an answer (`response_format` url)."""
        return server.stored.response(name)


def _edit_body(most: Mapping[str, int]) -> dict[str, Any]:
    """OpenAPI's description of an edit's body, which is a form or JSON."""
    body = json_body(JsonEdit)
    body["requestBody"]["content"] |= form_content(Edit, EDITED, {"image": most["image"]})
    return body


def _images_of(files: Mapping[str, list[bytes]]) -> list[bytes]:
    if "image" not in files:
        text = "Missing required parameter: 'image'. Send a picture as a file of this name."
        raise Problem(400, text, param="image", code="missing_required_parameter")
    return files["image"]


def _other_routes(app: FastAPI, server: Server) -> None:
    @app.get("/v1/models", tags=["models"])
    async def models() -> Response:
        """The model, what it can do, and the server's limits."""
        return Json({"object": "list", "data": [*server.cards.values()]})

    @app.get("/v1/models/{name:path}", responses={404: ERRORS[404]}, tags=["models"])
    async def model(name: str) -> Response:
        """One model by its id."""
        if not name.strip("/"):
            return await models()
        if name not in server.cards:
            raise model_not_found(name, server.engine.about.name)
        return Json(server.cards[name])

    @app.get("/healthz", responses={503: {"description": "Nothing computes images now."}}, tags=["operation"])
    async def healthz() -> Response:
        """Answers when the model is loaded. With replicas, the status is 503 while none of them runs."""
        if not await asyncio.to_thread(server.engine.ready):
            raise Problem(503, "no replica runs at the moment.", kind=SERVER, code="not_ready", retry_after=5.0)
        return Json({"status": "ok", "model": server.engine.about.name})

    @app.get("/docs", include_in_schema=False)
    async def docs() -> Response:
        return HTMLResponse(documentation.page(app.openapi()))

    @app.get("/metrics", tags=["operation"], response_class=PlainTextResponse)
    async def metrics() -> Response:
        """Metrics for Prometheus."""
        running, starts = server.worker.running, server.worker.starts()
        gauges = {"queue_length": len(starts), "requests_running": running}
        gauges["requests_painting"] = running  # the old name, for one release
        gauges["queue_seconds"] = round(starts[-1]) if starts else 0
        gauges |= {"held_bytes": server.admission.held, "stored_bytes": server.stored.held}
        text = server.metrics.text(gauges)
        return PlainTextResponse(text, media_type="text/plain; version=0.0.4")


def _handle_errors(app: FastAPI) -> None:
    @app.exception_handler(HTTPException)
    async def on_http(request: Request, error: HTTPException) -> Response:
        where = f"{request.method[:20]} {request.url.path[:80]}"
        texts = {404: (f"Invalid URL ({where})", None), 405: (f"Method not allowed ({where})", "method_not_supported")}
        text, code = texts.get(error.status_code, (f"{error.detail}"[:300], None))
        answer = Problem(error.status_code, f"{text.removesuffix('.')}.", code=code).response()
        answer.headers.update(error.headers or {})
        return answer

    @app.exception_handler(Problem)
    async def on_problem(_request: Request, error: Problem) -> Response:
        return error.response()

    @app.exception_handler(UserError)
    async def on_mistake(_request: Request, error: UserError) -> Response:
        return problem_of(error).response()


def _document(app: FastAPI) -> None:
    """Add the bodies that FastAPI does not read, and remove its own errors (422): this server answers otherwise."""
    described = app.openapi

    def ours() -> dict[str, Any]:
        schema = described()
        for operations in schema["paths"].values():
            for operation in operations.values():
                operation["responses"].pop("422", None)
        schema["components"] = {"schemas": json_schemas(Generation, JsonEdit, Mix)}
        return schema

    app.openapi = ours
