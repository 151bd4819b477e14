"""The errors that callers can meet: user mistakes apart from faults, each with a stable code."""

from __future__ import annotations


class LtDiError(Exception):
    """Base of everything this library raises on purpose.

    Args:
        message: the value, the rule and the way out.
        field: where in the input the cause lies, for example `support` or `labels`.
    """

    code = "error"

    def __init__(self, message: str, *, field: str | None = None) -> None:
        super().__init__(message)
        self.field = field


class InvalidInput(LtDiError):
    """What the caller sent cannot be used; sending it again unchanged will fail again."""

    code = "invalid-input"


class InvalidSupport(InvalidInput):
    """The examples of a task do not make a task."""

    code = "support-invalid"


class EmptySupport(InvalidSupport):
    """There is nothing to make a head from."""

    code = "support-empty"


class TooFewClasses(InvalidSupport):
    """A head separates at least two classes."""

    code = "classes-too-few"


class LimitExceeded(InvalidInput):
    """More classes or examples than the bundle takes."""

    code = "limit-exceeded"


class InvalidFeatures(InvalidInput):
    """Features of the wrong size or type, or not finite."""

    code = "features-invalid"


class InvalidImage(InvalidInput):
    """Something that should be an image and is not, or cannot be decoded."""

    code = "image-invalid"


class InvalidText(InvalidInput):
    """A text that is empty, no string, or longer than the body reads."""

    code = "text-invalid"


class UnsupportedInput(InvalidInput):
    """A kind of input that this bundle's body does not read."""

    code = "input-unsupported"


class InvalidConfig(InvalidInput):
    """An unknown or impossible setting."""

    code = "config-invalid"


class DataMissing(LtDiError):
    """A data set is not where it was looked for."""

    code = "data-missing"


class BundleNotFound(LtDiError):
    """No bundle has this name, and no folder lies at this path."""

    code = "bundle-not-found"


class BodyMissing(LtDiError):
    """The bundle's body is not installed on this machine; the message says how to get it."""

    code = "body-missing"


class ForeignBase(LtDiError):
    """The base model is another than an adapter or its bundle was made for; the message says by what."""

    code = "base-foreign"


class DamagedBase(LtDiError):
    """The base model's files are not whole, or hold what no model can compute with."""

    code = "base-damaged"


class AdapterRefused(LtDiError):
    """A server that was asked to load an adapter refused, cannot be reached, or gave no answer that can be read."""

    code = "adapter-refused"


class EmbedderFailed(LtDiError):
    """The embedding endpoint refused, cannot be reached, or answered with something that is no embedding."""

    code = "embedder-failed"


class EmbedderTimeout(EmbedderFailed):
    """The embedding endpoint did not answer in time."""

    code = "embedder-timeout"


class DeadlinePassed(LtDiError):
    """The work was given up, as it would not be done in the time that was set for it."""

    code = "deadline-passed"


class DamagedFile(LtDiError):
    """A bundle or head that must not be used: its digest, tensors, numbers or version are wrong."""

    code = "file-damaged"


class GenerationFailed(LtDiError):
    """A generated head did not pass its check: a fault of the bundle, not of the caller."""

    code = "generation-failed"
