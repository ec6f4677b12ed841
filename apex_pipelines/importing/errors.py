"""What can stop an import. A bad line doesn't: it goes to the rejected file and the rest goes on."""

from __future__ import annotations


class ImportFailed(RuntimeError):
    """The import can't go on; the message says what was wrong, with which value, and what to do."""


class UnreadableFile(ImportFailed):
    """The file is missing, empty, no text, or may not be read."""


class MappingProblem(ImportFailed):
    """The mapping is missing or malformed, or does not fit the file."""


class ImportInterrupted(ImportFailed):
    """The import stopped on its way; what is confirmed is kept, and running it again goes on from there."""
