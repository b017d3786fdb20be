# SPDX-License-Identifier: GPL-2.0-or-later
"""Who is entitled to what of a host: arithmetic on values, without files, clock or logging."""
