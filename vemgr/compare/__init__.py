# SPDX-License-Identifier: GPL-2.0-or-later
"""The same work under every kind of virtualization that this host can run."""
