"""The base class of the errors that a user can cause and mend."""

__all__ = ["NnunetDtcError"]


class NnunetDtcError(ValueError):
    """Bad input, such as a file, a name or an option that cannot be used; the message gives the rule and the value.

    The commands print errors of this class as one message. Any other exception but ``OSError`` is a bug of this
    package, and keeps its traceback.
    """
