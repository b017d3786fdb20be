# SPDX-License-Identifier: GPL-2.0-or-later
"""What can be seen of VEs and of the host."""
