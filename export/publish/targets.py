"""Where a user wants it → who brings it there: one row per scheme."""

import re
from collections.abc import Callable
from functools import partial
from typing import NamedTuple

from export.publish.directory import open_directory
from export.publish.hub import open_hub
from export.publish.mlflow import open_mlflow, open_mlflow_tls
from export.publish.object_store import knows, open_store
from export.publish.oci import open_oci, open_oci_http
from export.publish.publisher import Publisher, scrubbed
from transform.errors import PublishError


class Scheme(NamedTuple):
    """`example`: for messages and help; `open`: what follows `scheme:` or `scheme://` → its publisher, not asked yet;
    `open_public`: the same for a registry where what is new can be made visible to everyone."""

    example: str
    open: Callable[[str], Publisher]
    open_public: Callable[[str], Publisher] | None = None


SCHEMES: dict[str, Scheme] = {
    "dir": Scheme("dir:FOLDER", open_directory),
    "hf": Scheme("hf:OWNER/NAME", open_hub, partial(open_hub, public=True)),
    "mlflow": Scheme("mlflow://HOST:PORT/NAME", open_mlflow),
    "mlflow+https": Scheme("mlflow+https://HOST/NAME", open_mlflow_tls),
    "oci": Scheme("oci://HOST/REPOSITORY", open_oci),
    "oci+http": Scheme("oci+http://HOST/REPOSITORY", open_oci_http),
    "s3": Scheme("s3://BUCKET/PREFIX", partial(open_store, "s3")),
}


def open_target(target: str, public: bool = False) -> Publisher:
    """The publisher of `scheme:rest` or `scheme://rest`; raises PublishError for a scheme that none serves.

    `public`: what is made there may be seen by everyone.
    """
    match = re.fullmatch(r"([a-z][a-z0-9+.\-]*):(//)?(.*)", target, re.DOTALL)
    if match is None or (match[1] not in SCHEMES and not (match[2] and knows(match[1]))):
        known = ", ".join(scheme.example for scheme in SCHEMES.values())
        raise PublishError(
            f"a target must be one of {known}, or a URL of a store that fsspec knows, as gs:// and abfs://; got "
            f"{scrubbed(target)[:80]!r}. Give one of these."
        )
    scheme = SCHEMES.get(match[1]) or Scheme(f"{match[1]}://…", partial(open_store, match[1]))
    if not public:
        return scheme.open(match[3])
    if scheme.open_public is None:
        raise PublishError(
            f"--public makes what is new visible to everyone, and who sees {match[1]}: is not knobcast's to say. "
            "Leave it out."
        )
    return scheme.open_public(match[3])
