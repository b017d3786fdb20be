# SPDX-License-Identifier: GPL-2.0-or-later
"""The networks of VEs: subnets and addresses, bridges and links, published ports, what the host must forward."""
