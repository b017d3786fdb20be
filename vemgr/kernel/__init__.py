# SPDX-License-Identifier: GPL-2.0-or-later
"""One module per kernel interface; nothing else in the tree touches the kernel."""
