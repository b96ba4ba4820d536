"""What ends a search."""


class SearchEndedError(RuntimeError):
    """Raised where a search cannot go on before somebody sees to something, such as a full disk.

    The message is one sentence; the same command goes on once that is done.
    """
