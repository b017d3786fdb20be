# SPDX-License-Identifier: GPL-2.0-or-later
"""What VEs are made from: the template store, the unpacker of untrusted archives, the links to the host."""
