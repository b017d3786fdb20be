# SPDX-License-Identifier: GPL-2.0-or-later
"""vemgr: virtual environments on one Linux kernel."""

__version__ = "0.1.0"
