# SPDX-License-Identifier: GPL-2.0-or-later
"""What `scripts/bench` measures, and how."""
