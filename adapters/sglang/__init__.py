"""lazycast for SGLang: one rank of a host hashes the images of a request, and the others take its result.

Guarantees:

* Importing this imports neither SGLang nor torch. SGLang's own classes and functions do the work, whatever the release:
  what a request becomes is what SGLang alone would have made of it, on every rank.
* No rank decides by itself whether to take part: a call that any rank cannot serve fails on all that wait for it.
"""

from .binding import Binding, UnsupportedReleaseError
from .broadcast import SGLangBroadcast
from .futures import InputsFuture
from .requests import RequestBroadcast, install_requests, uninstall_requests
from .scheduler import install, uninstall

__all__ = [
    "Binding",
    "InputsFuture",
    "RequestBroadcast",
    "SGLangBroadcast",
    "UnsupportedReleaseError",
    "install",
    "install_requests",
    "uninstall",
    "uninstall_requests",
]
