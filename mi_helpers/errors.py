"""Codes of the errors that users meet, each explained on a page of `docs/errors`."""


def explained(code: str, message: str) -> str:
    """The message, with its code and the page that says why it came and what to do."""
    gap = "\n" if "\n" in message else " "
    return f"{message}{gap}[{code}: explained in docs/errors/{code}.md]"
