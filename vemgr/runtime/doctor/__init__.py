# SPDX-License-Identifier: GPL-2.0-or-later
"""Whether this host is fit for VEs: one small probe for each fact, which judges what `Host` reads.

A probe is a function from (Host, Site) to a Finding. It neither opens files nor asks the kernel itself, so that each
verdict can be tested with a host that is made up.
"""
