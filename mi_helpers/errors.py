"""Codes of the errors that users meet, each explained on a page of `docs/errors`."""


def explained(code: str, message: str) -> str:
    """The message, with its code and the page that says why it came and what to do."""
    return f"{message} [{code}: explained in docs/errors/{code}.md]"
