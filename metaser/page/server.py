"""A browser page for users without a terminal: label clips, adapt a model, listen to new clips.

The page is served to this machine alone and requests nothing from other machines: a policy in each
answer (`POLICY`) forbids it to the browser. Clips are kept in a temporary folder, and their labels
in memory, until the user removes them or the program ends. Reloading the page loses nothing.
"""

import secrets
import signal
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import urlsplit

import jinja2
from pydantic import BaseModel, ValidationError

from metaser import audio
from metaser.adaptation import card as model_card
from metaser.adaptation.model_file import ModelFile, save
from metaser.features.hear import LONGEST
from metaser.files import written
from metaser.page.desk import (
    FEW,
    Clip,
    Desk,
    Label,
    Said,
    Wish,
    adapt_desk,
    adaptation_of,
    adapted_model,
    expectation,
    hear_recording,
    own_names,
)
from metaser.tasks import clip_checks

if TYPE_CHECKING:
    from starlette.applications import Starlette
    from starlette.middleware.base import RequestResponseEndpoint
    from starlette.requests import Request
    from starlette.responses import Response

Message = TypeVar("Message", bound=BaseModel)

HOST = "127.0.0.1"
"""The only address at which the page is served: this machine itself."""

CLIP_BYTES = 20_000_000
"""Largest file of a labelled clip, in bytes."""

RECORDING_BYTES = 100_000_000
"""Largest file of a recording to predict, in bytes."""

RECORDING_SECONDS = 600.0
"""Longest recording to predict, in seconds."""

MOST_CLIPS = 500
"""Largest number of labelled clips that are kept at once."""

POLICY = "default-src 'self'; media-src 'self' blob:; img-src 'self' data:; frame-ancestors 'none'"
"""Content security policy: what the browser may load, and from where."""

MISSING = 'the page needs starlette and uvicorn: pip install "metaser[app]"'
"""Message of the error if the extra ``app`` is not installed."""

HERE = Path(__file__).parent
"""Folder of the template, the script and the style sheet."""


def application(model: ModelFile, name: str) -> "Starlette":
    """Return the page as a web application (ASGI).

    Parameters
    ----------
    model : ModelFile
        From `metaser train`, or adapted already.
    name : str
        Name of the model, for the user.

    Raises
    ------
    ModuleNotFoundError
        If the extra ``app`` is not installed; the message gives the command.
    """
    try:
        from starlette.applications import Starlette
        from starlette.middleware import Middleware
        from starlette.middleware.base import BaseHTTPMiddleware
        from starlette.middleware.trustedhost import TrustedHostMiddleware
        from starlette.routing import Route
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(MISSING) from error

    @asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        """Keep the clips in a temporary folder as long as the application runs."""
        with TemporaryDirectory(prefix="metaser-") as folder:
            app.state.desk = Desk(model, name, Path(folder))
            if model.adapted is not None:
                app.state.desk.adapted = model
            yield

    routes = [
        Route("/", _page),
        Route("/page.{kind:str}", _part),
        Route("/desk", _desk),
        Route("/clips", _add, methods=["POST"]),
        Route("/clips", _remove_all, methods=["DELETE"]),
        Route("/clips/{key:str}", _listen),
        Route("/clips/{key:str}", _label, methods=["PUT"]),
        Route("/clips/{key:str}", _remove, methods=["DELETE"]),
        Route("/adapt", _adapt, methods=["POST"]),
        Route("/predict", _predict, methods=["POST"]),
        Route("/model", _model),
        Route("/card", _card),
    ]
    # Another site in the same browser must not reach the page under a host name of its own.
    middleware = [
        Middleware(TrustedHostMiddleware, allowed_hosts=[HOST, "localhost"]),
        Middleware(BaseHTTPMiddleware, dispatch=_guard),
    ]
    refused = dict.fromkeys((ValueError, ArithmeticError, ImportError, OSError), _refuse)
    return Starlette(
        routes=routes, middleware=middleware, exception_handlers=refused, lifespan=lifespan
    )


def serve(
    model: ModelFile, name: str, port: int = 7860, ready: Callable[[str], None] = print
) -> None:
    """Serve the page until the program is interrupted.

    Parameters
    ----------
    model, name
        See `application`.
    port : int
        Port to listen at; 0 takes a free one.
    ready : callable
        Called with the address of the page as soon as the page can be opened.

    Raises
    ------
    ModuleNotFoundError
        If the extra ``app`` is not installed; the message gives the command.
    OSError
        If the port cannot be used.
    """
    app = application(model, name)
    try:
        import uvicorn
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(MISSING) from error
    try:
        listening = socket.create_server((HOST, port))
    except OSError as error:
        raise OSError(
            f"port {port} cannot be used ({error.strerror}): perhaps the page is open already at "
            f"http://{HOST}:{port}; if not, choose another port by --port"
        ) from error
    if hasattr(signal, "SIGHUP"):  # when the terminal is closed, end in order and remove the clips
        signal.signal(signal.SIGHUP, lambda *_: signal.raise_signal(signal.SIGTERM))
    server = uvicorn.Server(uvicorn.Config(app, log_level="warning"))
    with listening:
        ready(f"http://{HOST}:{listening.getsockname()[1]}")
        server.run(sockets=[listening])


async def _guard(request: "Request", answer: "RequestResponseEndpoint") -> "Response":
    """Refuse requests from other sites, and forbid the browser to load anything from elsewhere."""
    from starlette.responses import PlainTextResponse

    origin = request.headers.get("origin")
    if origin is not None and urlsplit(origin).netloc != request.headers["host"]:
        return PlainTextResponse(f"requests must come from the page itself, not {origin}", 403)
    response = await answer(request)
    response.headers["Content-Security-Policy"] = POLICY
    response.headers["Cache-Control"] = "no-store"
    return response


async def _refuse(request: "Request", error: Exception) -> "Response":
    """Answer an error of the user with its message."""
    from starlette.responses import JSONResponse

    return JSONResponse({"error": str(error)}, 400)


async def _page(request: "Request") -> "Response":
    """Answer with the page."""
    from starlette.responses import HTMLResponse

    desk = request.app.state.desk
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(HERE), autoescape=True, undefined=jinja2.StrictUndefined
    )
    header = desk.model.header
    return HTMLResponse(
        environment.get_template("page.html.jinja").render(
            name=desk.name,
            header=header,
            languages=sorted({model_card.language_name(s.language) for s in header.sources}),
            warning=model_card.SYNTHETIC if header.synthetic else "",
            result=None if header.adaptation is None else expectation(desk.model),
            limits={
                "clip-bytes": CLIP_BYTES,
                "clip-seconds": LONGEST,
                "recording-bytes": RECORDING_BYTES,
                "recording-seconds": RECORDING_SECONDS,
                "extensions": " ".join(audio.EXTENSIONS),
            },
            few=FEW,
            voices=desk.model.knows_voices,
        )
    )


async def _part(request: "Request") -> "Response":
    """Answer with the script or the style sheet."""
    from starlette.exceptions import HTTPException
    from starlette.responses import FileResponse

    kind = request.path_params["kind"]
    if kind not in ("css", "js"):
        raise HTTPException(404)
    return FileResponse(HERE / f"page.{kind}")


async def _add(request: "Request") -> "Response":
    """Add a clip for labelling."""
    from starlette.concurrency import run_in_threadpool
    from starlette.responses import JSONResponse

    desk = request.app.state.desk
    if len(desk.clips) >= MOST_CLIPS:
        raise ValueError(f"there are {MOST_CLIPS} clips already, which is the most: remove some")
    clip = await _received(request, CLIP_BYTES, LONGEST)
    measured = await run_in_threadpool(clip_checks.listen, clip.path)
    clip.seconds, clip.note = measured.seconds, _warning(measured)
    desk.clips[clip.path.stem] = clip
    return JSONResponse(_shown(clip))


def _warning(measured: clip_checks.Heard) -> str:
    """Return a warning about a clip that can be used, or ""."""
    if measured.level < clip_checks.QUIET:
        return "This clip is almost silent: listen to it."
    if measured.clipped > clip_checks.CLIPPED:
        return "This clip was recorded too loud and is distorted: record it again, less loud."
    return ""


def _shown(clip: Clip) -> dict[str, Any]:
    """Return what the page shows of a clip."""
    names = ("name", "seconds", "note", "emotion", "speaker")
    return {"key": clip.path.stem} | {name: getattr(clip, name) for name in names}


async def _desk(request: "Request") -> "Response":
    """Answer a reloaded page with the clips, their labels and the result so far."""
    from starlette.responses import JSONResponse

    desk = request.app.state.desk
    labels = [
        Label(key=key, emotion=clip.emotion, speaker=clip.speaker)
        for key, clip in desk.clips.items()
    ]
    return JSONResponse(
        {
            "clips": [_shown(clip) for clip in desk.clips.values()],
            "language": desk.language,
            "who": desk.who,
            "result": desk.result,
            "outdated": desk.learnt != labels,
        }
    )


def _requested(request: "Request") -> Clip:
    """Return the clip that a request names."""
    from starlette.exceptions import HTTPException

    clip = request.app.state.desk.clips.get(request.path_params["key"])
    if clip is None:
        raise HTTPException(404)
    return clip


async def _listen(request: "Request") -> "Response":
    """Answer with the sound of a clip."""
    from starlette.responses import FileResponse

    return FileResponse(_requested(request).path)


async def _label(request: "Request") -> "Response":
    """Keep the user's labels for a clip."""
    from starlette.responses import Response

    clip = _requested(request)
    labels = _parsed(Said, await request.body())
    clip.emotion, clip.speaker = labels.emotion, labels.speaker
    return Response(status_code=204)


async def _remove(request: "Request") -> "Response":
    """Remove a clip and its labels."""
    from starlette.responses import Response

    clip = request.app.state.desk.clips.pop(request.path_params["key"], None)
    if clip is not None:
        clip.path.unlink()
    return Response(status_code=204)


async def _remove_all(request: "Request") -> "Response":
    """Remove all clips and their labels."""
    from starlette.responses import Response

    clips = request.app.state.desk.clips
    while clips:
        clips.popitem()[1].path.unlink()
    return Response(status_code=204)


async def _adapt(request: "Request") -> "Response":
    """Adapt the model, and answer with what to expect of it."""
    from starlette.concurrency import run_in_threadpool
    from starlette.responses import JSONResponse

    wish = _parsed(Wish, await request.body())
    return JSONResponse(await run_in_threadpool(adapt_desk, request.app.state.desk, wish))


def _parsed(kind: type[Message], body: bytes) -> Message:
    """Read a message that the page has sent."""
    try:
        return kind.model_validate_json(body)
    except ValidationError as error:
        raise ValueError(
            f"the page has sent a message that is not valid ({error}): reload the page"
        ) from error


async def _predict(request: "Request") -> "Response":
    """Recognise the emotion of a recording; the recording is not kept."""
    from starlette.concurrency import run_in_threadpool
    from starlette.responses import JSONResponse

    desk = request.app.state.desk
    adapted_model(desk)
    clip = await _received(request, RECORDING_BYTES, RECORDING_SECONDS)
    try:
        who = request.query_params.get("who") or "unknown"
        return JSONResponse(await run_in_threadpool(hear_recording, desk, clip, who))
    finally:
        clip.path.unlink()


async def _model(request: "Request") -> "Response":
    """Answer with the adapted model as a file."""
    from starlette.background import BackgroundTask
    from starlette.responses import FileResponse

    desk = request.app.state.desk
    file = adapted_model(desk)
    path = desk.folder / f"{secrets.token_hex(8)}.safetensors"
    save(path, file)
    name = f"{adaptation_of(file).name}.safetensors"
    return FileResponse(path, filename=name, background=BackgroundTask(path.unlink))


async def _card(request: "Request") -> "Response":
    """Answer with the card of the adapted model as Markdown."""
    from starlette.responses import Response

    file = adapted_model(request.app.state.desk)
    text = model_card.card(file, adaptation_of(file).name)
    return Response(
        text,
        media_type="text/markdown",
        headers={"Content-Disposition": 'attachment; filename="report.md"'},
    )


async def _received(request: "Request", most: int, longest: float) -> Clip:
    """Write the body of a request to a file; refuse it if it is no audio, too large or too long."""
    from starlette.concurrency import run_in_threadpool

    desk = request.app.state.desk
    name = Path(request.query_params.get("name", "")).name or "clip"
    suffix = Path(name).suffix.lower()
    path = desk.folder / f"{secrets.token_hex(8)}{suffix if suffix in audio.EXTENSIONS else ''}"
    try:
        size = 0
        with written(path), path.open("wb") as file:
            async for chunk in request.stream():
                size += len(chunk)
                if size > most:
                    raise ValueError(f"{name} is larger than {most // 10**6} MB: cut it")
                file.write(chunk)
        with own_names([Clip(name, path)]):
            await run_in_threadpool(_check, path, longest)
    except BaseException:
        path.unlink(missing_ok=True)
        raise
    return Clip(name, path)


def _check(path: Path, longest: float) -> None:
    """Refuse a file that is no audio, is cut off, holds no sound or is too long."""
    seconds = audio.duration(path)
    if seconds > longest:
        raise ValueError(
            f"{path} must be at most {longest:.0f} s long, but is {seconds:.0f} s long: cut it"
        )
    audio.decode(path)
