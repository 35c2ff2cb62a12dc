"""The base class of errors that users can cause and correct."""

__all__ = ["NnunetDtcError"]


class NnunetDtcError(ValueError):
    """Bad input, such as a file, a name or an option that cannot be used. The message gives the rule and the value.

    The commands print errors of this class and of ``OSError`` as one message. Any other exception is a bug of this
    package and keeps its traceback.
    """
