# SPDX-License-Identifier: GPL-2.0-or-later
"""The varlink interface, its errors and a client that needs only the standard library."""
