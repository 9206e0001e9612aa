"""What the Hub answers, or doesn't → one sentence: what it refuses and the way out, without secrets of addresses."""

import errno
from collections.abc import Iterator, Mapping
from json import JSONDecodeError
from typing import cast

from huggingface_hub.errors import (
    EntryNotFoundError,
    HfHubHTTPError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from export.publish.publisher import scrubbed
from transform.errors import PublishError

HTTP = cast(type[Exception], HfHubHTTPError.__bases__[0])  # the root of httpx or httpx2, whichever this version uses

# the client's, at an answer that no Hub gives
MISREAD = (KeyError, TypeError, AttributeError, IndexError, NameError, AssertionError, ArithmeticError)


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def told(error: Exception, repository: str) -> PublishError:
    """The error for people: what the Hub refused, why, and the way out."""
    card = next((link for link in _chain(error) if "Invalid metadata in README.md" in str(link)), None)
    if card is not None:
        return PublishError(f"{repository}: {_brief(card)} The Hub takes no such card: write the variant again.")
    if any(isinstance(link, OSError) and link.errno in (errno.ENOSPC, errno.EDQUOT) for link in _chain(error)):
        return PublishError(
            f"{repository}: the disk is full that has the Hub client's cache. Free space there, or set HF_HUB_CACHE."
        )
    answered = next((link for link in _chain(error) if isinstance(link, HfHubHTTPError)), None)
    if answered is not None:
        return PublishError(f"{repository}: {_refusal(answered)}")
    if any("/xet-write-token" in str(link) for link in _chain(error)):
        return PublishError(f"{repository}: this Hub has no Xet storage, or refuses it. Set HF_HUB_DISABLE_XET=1.")
    if any(isinstance(link, OfflineModeIsEnabled) for link in _chain(error)):
        return PublishError(f"{repository}: HF_HUB_OFFLINE is set, so the Hub isn't asked. Unset it.")
    lost = next((link for link in _chain(error) if isinstance(link, HTTP)), None)
    if lost is not None:
        return PublishError(
            f"{repository}: the Hub can't be reached, or closed the connection ({type(lost).__name__}). Check the "
            "network and HF_ENDPOINT and run the command again: what arrived whole stays there."
        )
    if isinstance(error, (*MISREAD, JSONDecodeError)):
        return PublishError(
            f"{repository}: the server must answer as the Hub does, it doesn't ({_brief(error)}). {_ENDPOINT}"
        )
    return PublishError(f"{repository}: the Hub's client failed: {_brief(error)}. Run the command again.")


_ENDPOINT = "Check HF_ENDPOINT."
_WAYS_OUT: Mapping[int, str] = {
    403: "the credentials don't allow this. Use a token that may write there",
    429: "the Hub asks to slow down. Wait some minutes and run the command again: what arrived whole stays there",
}


def _refusal(error: HfHubHTTPError) -> str:
    status, said = error.response.status_code, error.server_message
    details = f"{status}{': ' + _brief(said) if said else ''}"
    if status == 401:
        return (
            f"the Hub wants credentials ({details}): there are none, they are wrong, or they may not see it. Run "
            "`hf auth login` or set HF_TOKEN, and check the name."
        )
    if isinstance(error, RepositoryNotFoundError):
        return f"no such repository, or the credentials may not see it ({details}). Check the name and HF_TOKEN."
    if isinstance(error, RevisionNotFoundError):
        return f"the repository has no such branch, tag or commit ({details}). Check the name behind the @."
    if isinstance(error, EntryNotFoundError):
        return f"a file isn't there ({details}): it holds no variant, or not a whole one. Check the name."
    if status == 404:
        return f"the server has no such page ({details}), so it may be no Hub. {_ENDPOINT}"
    if status >= 500:
        return f"the Hub fails ({details}). Run the command again later: what arrived whole stays there."
    return f"{_WAYS_OUT.get(status, 'the Hub refuses this. Check what it says')} ({details})."


def _brief(text: object) -> str:
    return "".join(c if c.isprintable() else " " for c in scrubbed(text))[:300].strip()
