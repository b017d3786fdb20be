# SPDX-License-Identifier: GPL-2.0-or-later
"""VEs in guests: one in each, and several in one."""
