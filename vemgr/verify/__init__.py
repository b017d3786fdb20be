# SPDX-License-Identifier: GPL-2.0-or-later
"""Whether limits hold: each is measured with real load in the VE's cgroup."""
