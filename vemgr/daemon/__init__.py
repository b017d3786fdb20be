# SPDX-License-Identifier: GPL-2.0-or-later
"""The composition root: joins adapters to use cases and serves the API."""
