"""The image's health check: exit status 0 if the service in this container is ready.

Address, port and TLS are read where the service reads them, KRONSERVE_* variables before the TOML file of
KRONSERVE_CONFIG; options on the command line are not seen. Python's own library alone, since this runs every few
seconds beside the service.
"""

from __future__ import annotations

import http.client
import os
import sys
import tomllib
from pathlib import Path

DEFAULTS = {"host": "127.0.0.1", "port": 8000, "tls_certificate": ""}
EVERY_ADDRESS = {"0.0.0.0": "127.0.0.1", "::": "::1"}  # noqa: S104
TIMEOUT_SECONDS = 4


def settings() -> dict[str, object]:
    """What the service was told, as far as it matters here."""
    variables = {key.upper(): value for key, value in os.environ.items()}
    file = variables.get("KRONSERVE_CONFIG", "")
    listed = tomllib.loads(Path(file).read_text("utf-8")) if file and file.lower() != "none" else {}
    return {name: variables.get(f"KRONSERVE_{name.upper()}", listed.get(name, DEFAULTS[name])) for name in DEFAULTS}


def connection() -> http.client.HTTPConnection:
    """A connection to the service, which speaks TLS if it has a certificate. That is its own, so it is not verified."""
    told = settings()
    host, port = EVERY_ADDRESS.get(str(told["host"]), str(told["host"])), int(str(told["port"]))
    if str(told["tls_certificate"]).lower() in ("", "none"):
        return http.client.HTTPConnection(host, port, timeout=TIMEOUT_SECONDS)
    import ssl

    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    return http.client.HTTPSConnection(host, port, timeout=TIMEOUT_SECONDS, context=context)


def main() -> int:
    """Ask, and say what is wrong: `docker inspect` shows it."""
    try:
        asked = connection()
        asked.request("GET", "/v2/health/ready")
        status = asked.getresponse().status
    except (OSError, ValueError, http.client.HTTPException) as error:
        print(error)  # noqa: T201
        return 1
    print(status)  # noqa: T201
    return int(status != 200)


if __name__ == "__main__":
    sys.exit(main())
