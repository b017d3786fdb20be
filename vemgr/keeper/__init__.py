# SPDX-License-Identifier: GPL-2.0-or-later
"""The parent of all VEs, and everything that runs between it and a VE: small, single-threaded, few imports."""
