# SPDX-License-Identifier: GPL-2.0-or-later
"""How long an example of hypothesis takes depends on what else the machine does: there is no deadline."""

from hypothesis import settings

settings.register_profile("vemgr", parent=settings.default, deadline=None)
settings.load_profile("vemgr")
