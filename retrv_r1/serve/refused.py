"""Why a picture of a request is not taken."""

from __future__ import annotations


class PictureRefused(Exception):
    """A picture that is not taken; the message says the fix and holds nothing of the caller's.

    Args:
        status: HTTP status: 400 malformed or out of reach, 413 too large, 415 not a picture.
        code: name for programs, one of :data:`CODES`; with status 413 it is the limit's name.
        message: what is wrong and how to fix it, in one line.
    """

    def __init__(self, status: int, code: str, message: str) -> None:
        assert code in CODES, code
        super().__init__(message)
        self.status, self.code, self.message = status, code, message


CODES = frozenset(
    {
        "picture_malformed",  # neither base64 nor a URL that can be read
        "picture_unsupported",  # bytes of no format that is read
        "picture_damaged",
        "remote_pictures_off",
        "picture_files_off",
        "picture_address",  # a URL or host that the policy forbids
        "picture_unreachable",
        "picture_file",
        "max_picture_bytes",
        "max_picture_pixels",
        "max_picture_memory",
        "max_picture_seconds",
    }
)
"""All codes, so that counts by code are bounded."""


def malformed(message: str) -> PictureRefused:
    """A string that stands for no picture."""
    return PictureRefused(400, "picture_malformed", message)


def over_bytes(most: int) -> PictureRefused:
    """A picture of more bytes than the limit."""
    return PictureRefused(
        413,
        "max_picture_bytes",
        f"the picture has more than the limit max_picture_bytes of {most} bytes; shrink it, or "
        "start the server with --limit max_picture_bytes=N",
    )
