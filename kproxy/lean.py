"""What makes the imports of a controller cost less; imported before everything else, for what it does.

No garbage is collected while a controller imports: it would look at a hundred thousand objects that stay, several times, 50 ms in all. The
controller says when to begin again (after the first sync). Other programs that import this, as tests do, go on as they are.

What dataclasses compile at every import is kept from the last start (recorded.py).

aiohttp (3.14) makes two TLS contexts when it is imported, and reads all certificates of the system for one of them: 40 ms of the 480 that a
controller's imports take, for contexts that nobody uses here, as every connection brings its own (watch/credentials.py). OpenSSL takes the
file's name from the environment, so for the time of the import it is another one. Nothing is left of that behind it.
"""

from __future__ import annotations

import gc
import os
import sys

from kproxy import recorded  # noqa: F401 - before all that follows

_FILE = "SSL_CERT_FILE"


def _import_aiohttp() -> None:
    before = os.environ.get(_FILE)
    os.environ[_FILE] = os.devnull
    try:
        import aiohttp  # noqa: F401
    finally:
        if before is None:
            del os.environ[_FILE]
        else:
            os.environ[_FILE] = before


def _is_controller() -> bool:
    spec = getattr(sys.modules["__main__"], "__spec__", None)
    return spec is not None and spec.name == "kproxy.app"


if _is_controller():
    gc.disable()
_import_aiohttp()
