"""A name and its arguments, as TOML and the command line give them, become an object.

Front ends, backbones, methods, terms of the outer loss and recording situations are all built here,
so a wrong name or a wrong argument is always reported in the same way.
"""

import inspect
import json
import types
import typing
from collections.abc import Callable, Collection, Mapping, Sequence
from difflib import get_close_matches
from functools import partial
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, TypeAdapter, ValidationError
from pydantic.errors import PydanticUserError

MODALITIES = ("audio", "text", "video")
"""What a model can take in; backbones read it in this order."""

KINDS = {bool: "true or false", int: "a whole number", float: "a number", str: "a text"}
"""What TOML values of a type are called in messages."""


def nearest(word: str, known: Collection[str]) -> str:
    """Return ``" Did you mean 'x'?"`` for the known word nearest to `word`, or ``""``.

    >>> nearest("metasr", ["metaser", "reptile"])
    " Did you mean 'metaser'?"
    """
    close = get_close_matches(word, list(known), n=1, cutoff=0.6)
    return f" Did you mean {close[0]!r}?" if close else ""


def some(items: Sequence[str], most: int = 5) -> str:
    """Join the first items by commas, and say how many more there are.

    >>> some(["a", "b", "c"], most=2)
    'a, b, and 1 more'
    """
    more = f", and {len(items) - most} more" if len(items) > most else ""
    return ", ".join(items[:most]) + more


def one_of(name: object, known: Mapping[str, Any], what: str, hint: str = "") -> Any:
    """Return the entry of a family that has this name.

    Raises
    ------
    ValueError
        If there is none; the message gives the nearest known name.

    >>> one_of("mfc", {"mfcc": 1, "leaf": 2}, "front end")
    Traceback (most recent call last):
    ValueError: front end must be one of leaf, mfcc, not 'mfc'. Did you mean 'mfcc'?
    """
    if not isinstance(name, str) or name not in known:
        raise ValueError(
            f"{what} must be one of {', '.join(sorted(known))}, not {name!r}."
            f"{nearest(str(name), known)}{hint}"
        )
    return known[name]


def kind_of(maker: Callable) -> Any:
    """Return the class or function behind an entry of a family, which may have presets."""
    while isinstance(maker, partial):
        maker = maker.func
    return maker


def parameters(maker: Callable, *, hidden: Collection[str] = ()) -> dict[str, inspect.Parameter]:
    """Return the arguments that a user may give to a maker, by name; those ``hidden`` left out."""
    known = inspect.signature(maker).parameters
    kinds = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    return {k: v for k, v in known.items() if k not in hidden and v.kind not in kinds}


def check_arguments(
    maker: Callable, arguments: Mapping[str, Any], what: str, *, hidden: Collection[str] = ()
) -> dict[str, Any]:
    """Hold arguments against the signature of what they go to.

    Parameters
    ----------
    maker : callable
        A class, a function, or a ``functools.partial`` of one.
    arguments : mapping
        The user's keys and values.
    what : str
        What is built, for messages, such as ``"front end 'mfcc'"``.
    hidden : collection of str
        Arguments that the caller gives, which are not the user's.

    Returns
    -------
    dict
        The arguments; a whole number for an argument that is a number with decimals is one.

    Raises
    ------
    ValueError
        If a key is unknown (the nearest known one is named), a value has another type than the
        argument, or an argument without a default is missing.

    >>> def make(channels, width: int = 8): ...
    >>> check_arguments(make, {"widht": 4}, "backbone 'made'", hidden={"channels"})
    Traceback (most recent call last):
    ValueError: an argument of backbone 'made' must be width, not 'widht'. Did you mean 'width'?
    """
    known = parameters(maker, hidden=hidden)
    takes_any = any(
        value.kind is inspect.Parameter.VAR_KEYWORD
        for value in inspect.signature(maker).parameters.values()
    )
    for key in arguments:
        if key not in known and not takes_any:
            raise ValueError(
                f"an argument of {what} must be {' or '.join(sorted(known)) or 'absent'}, not "
                f"{key!r}.{nearest(key, known)}"
            )
    wanted = [key for key, value in known.items() if value.default is value.empty]
    missing = [key for key in wanted if key not in arguments]
    if missing:
        raise ValueError(f"{what} needs {' and '.join(missing)}: add {missing[0]} = …")
    annotations = _annotations(kind_of(maker))
    return {
        key: _checked(value, annotations.get(key, Any), f"{key} of {what}")
        for key, value in arguments.items()
    }


def construct(
    maker: Callable, arguments: Mapping[str, Any], what: str, *given: Any, **also: Any
) -> Any:
    """Check a user's arguments and build an object from them.

    Parameters
    ----------
    maker, arguments, what
        As in ``check_arguments``.
    *given, **also
        Arguments that are not the user's, by position and by name.

    Raises
    ------
    ValueError
        As in ``check_arguments``, or if the object itself refuses a value.
    """
    first = list(inspect.signature(maker).parameters)[: len(given)]
    checked = check_arguments(maker, arguments, what, hidden={*first, *also})
    try:
        return maker(*given, **also, **checked)
    except TypeError as error:
        raise ValueError(f"{what}: {error}") from error


def _annotations(kind: Any) -> dict[str, Any]:
    """Return the types of the arguments of a class or function; {} where they cannot be read."""
    target = kind.__init__ if inspect.isclass(kind) else kind
    try:
        return typing.get_type_hints(target)
    except (NameError, TypeError):
        return {}


def _checked(value: Any, kind: Any, where: str) -> Any:
    """Return a value as its type wants it; raise where it is of another."""
    if kind is float and type(value) is int:
        return float(value)
    try:
        adapter = TypeAdapter(kind, config=ConfigDict(strict=True, allow_inf_nan=True))
        text = json.dumps(value)  # lists serve for tuples, as they must in TOML
    except (PydanticUserError, TypeError, ValueError):
        return value  # no type, or no value, of TOML: the maker itself has to check it
    try:
        adapter.validate_json(text)
    except ValidationError as error:
        raise ValueError(f"{where} must be {type_name(kind)}, not {value!r}") from error
    return value


def type_name(kind: Any) -> str:
    """Return the words for a type in messages.

    >>> type_name(tuple[int, ...]), type_name(Literal["a", "b"] | None)
    ('a list of whole numbers', "'a' or 'b'")
    """
    origin, inner = typing.get_origin(kind), typing.get_args(kind)
    if kind in KINDS:
        return KINDS[kind]
    if origin is Literal:
        return " or ".join(map(repr, inner))
    if origin in (typing.Union, types.UnionType):
        return " or ".join(type_name(one) for one in inner if one is not type(None))
    if origin in (list, tuple) or (isinstance(origin, type) and issubclass(origin, Collection)):
        if issubclass(origin, Mapping | dict):
            return "a table"
        words = type_name(inner[0]) if inner else "values"
        return f"a list of {words.removeprefix('a ')}s" if words in KINDS.values() else "a list"
    return getattr(kind, "__name__", str(kind))


class Section(BaseModel):
    """A section of a TOML file: types are strict, and an unknown key is an error."""

    model_config = ConfigDict(extra="forbid", strict=True)


def explain(error: ValidationError, model: type[BaseModel]) -> str:
    """Say in sentences what is wrong with the sections of a file.

    Parameters
    ----------
    error : ValidationError
        Of ``model``.
    model : type
        The section at the top of the file.

    Returns
    -------
    str
        For an unknown key the nearest known one, else what must be and what came.
    """
    return "; ".join(_sentence(problem, model) for problem in error.errors())


def _sentence(problem: Any, model: type[BaseModel]) -> str:
    *path, key = [str(part) for part in problem["loc"]] or [""]
    place = f" in [{'.'.join(path)}]" if path else ""
    if problem["type"] == "extra_forbidden":
        known = _section(path, model).model_fields
        hint = nearest(key, known)
        if path and key in model.model_fields:
            hint = " It belongs at the top of the file, above the first [section]."
        return f"unknown key {key!r}{place}.{hint} Known: {', '.join(known)}"
    if problem["type"] == "missing":
        return f"the key {key!r} is missing{place}"
    if problem["type"] == "value_error":
        return str(problem["ctx"]["error"])
    name, words = f"{key or 'the file'}{place}", problem["msg"]
    if words.startswith("Input should be "):
        return f"{name} must be {words.removeprefix('Input should be ')}, not {problem['input']!r}"
    return f"{name}: {words}, not {problem['input']!r}"


def _section(path: list[str], model: type[BaseModel]) -> type[BaseModel]:
    """Return the section in which a key stands."""
    for part in path:
        if part in model.model_fields:
            inner = _models(model.model_fields[part].annotation)
            model = inner[0] if inner else model
    return model


def _models(annotation: Any) -> list[type[BaseModel]]:
    """Return the models in an annotation, such as that of ``dict[str, Setup]``."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [model for part in typing.get_args(annotation) for model in _models(part)]
