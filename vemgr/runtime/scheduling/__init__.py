# SPDX-License-Identifier: GPL-2.0-or-later
"""The resource scheduler at work on this host: what is promised to whom, and its decisions written to cgroups."""
