# SPDX-License-Identifier: GPL-2.0-or-later
"""The host configuration file, from which both sides of the API learn where the socket is."""

from __future__ import annotations

from vemgr.core.errors import SystemFailure
from vemgr.core.host import HostConfig

DEFAULT_PATH = "/etc/vemgr/vemgr.toml"


def load_config(path: str) -> HostConfig:
    """A missing file means the defaults. Raises `BadValue`, `BadParameter`, or `SystemFailure` for a file that cannot
    be read."""
    try:
        with open(path, "rb") as file:
            import tomllib  # noqa: PLC0415  (the command line needs it only where there is such a file)

            return HostConfig.from_mapping(tomllib.load(file))
    except FileNotFoundError:
        return HostConfig()
    except (OSError, ValueError, RecursionError) as error:  # the parser gives up at a thousand brackets
        raise SystemFailure(f"{path} cannot be read: {error}", path=path) from error
