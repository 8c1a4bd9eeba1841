"""How the command line says what went wrong: one line, with what to do."""

import errno

_NOT_ALLOWED = (errno.EACCES, errno.EPERM, errno.EROFS)

_FULL = (errno.ENOSPC, getattr(errno, "EDQUOT", errno.ENOSPC))


def sentence(error: Exception) -> str:
    """Our own errors carry their cure; others get their type and where to look."""
    ours = {"flows", "storage", "distill", "students"}
    if type(error).__module__.split(".")[0] in ours:
        return str(error)
    if isinstance(error, OSError) and error.errno in _NOT_ALLOWED and error.filename:
        return f"{error.filename} cannot be opened or written ({error.strerror}). Choose a place that you may write to."
    if isinstance(error, OSError) and error.errno in _FULL:
        where = f" for {error.filename}" if error.filename else ""
        return f"there is no room left{where} ({error.strerror}). Make some, and give the same command again: it goes on where it was."
    if type(error).__name__ == "OperationalError":  # SQLAlchemy's, which is not imported for it
        return f"the catalog cannot be used: {getattr(error, 'orig', error)}. Is its disk full, is it locked, or may it not be written to?"
    return f"{type(error).__name__}: {error}. This was not foreseen: run again with --debug for the traceback, and please report it."


def complain(message: str) -> None:
    """Print the line."""
    from flows.console import show_error

    show_error(message)
