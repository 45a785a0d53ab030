"""Everything convbench raises on purpose. A leaf module: it imports nothing of convbench."""

from __future__ import annotations

__all__ = [
    "BackendUnavailable",
    "ConvbenchError",
    "MissingDependency",
    "SpecError",
    "UnknownBackend",
    "UnsupportedSpec",
    "UnsupportedWeights",
    "one_line",
]


class ConvbenchError(Exception):
    """Base of all errors below: ``except convbench.ConvbenchError`` catches each of them."""


class SpecError(ConvbenchError, ValueError):
    """A malformed spec, line or argument.

    Parameters
    ----------
    field : str
        The argument at fault, named as in :class:`convbench.ConvSpec`.
    value : object
        What was given.
    rule : str
        What is allowed, and where it helps, what to do next.
    """

    def __init__(self, field: str, value: object, rule: str) -> None:
        self.field, self.value, self.rule = field, value, rule
        super().__init__(f"{field}: got {_short(value)}; {rule}")

    def __reduce__(self) -> tuple[type[SpecError], tuple[str, object, str]]:
        return type(self), (self.field, self.value, self.rule)


class UnsupportedSpec(ConvbenchError):
    """A valid spec that this backend does not do. The message is the backend's ``why_not``."""


class UnsupportedWeights(UnsupportedSpec):
    """The spec is fine but these weights lack the structure that the algorithm needs."""


class BackendUnavailable(ConvbenchError):
    """The backend cannot run on this machine: a library or a device is missing."""


class UnknownBackend(ConvbenchError, LookupError):
    """No backend of that name is registered."""


class MissingDependency(ConvbenchError, ImportError):
    """A feature (not a backend) needs a library that is not installed."""


def one_line(text: object) -> str:
    r"""Return a message or an error's text on one line, whatever it is.

    >>> one_line(ValueError("first\n  second"))
    'first second'
    """
    try:
        line = " ".join(str(text).split())
        return line.encode("utf-8", "backslashreplace").decode()  # a file's name need not be Unicode
    except Exception as error:  # an error of a stranger's, with a __str__ that fails
        return f"(its text cannot be shown: {type(error).__name__})"


def _short(value: object, limit: int = 80) -> str:
    text = " ".join(line.strip() for line in repr(value).splitlines())  # arrays take several
    return text if len(text) <= limit else text[: limit - 1] + "…"
