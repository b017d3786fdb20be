# SPDX-License-Identifier: GPL-2.0-or-later
"""The style of the HTML page, light and dark. Marks have a contrast of 3 : 1 to their ground, texts 4.5 : 1."""

STYLE = """
:root { color-scheme: light dark; --ground: #ffffff; --panel: #f6f7f9; --text: #1b1f24; --dim: #57606a;
  --rule: #e3e6ea; --grid: #dfe3e8; --warn: #8a4b00; --warn-ground: #fff4e0;
  --c0: #6b7280; --c1: #1f6feb; --c2: #d1600a; --c3: #c2255c; --c4: #0b8577; --c5: #7048c8; --c6: #8a6d00;
  --c7: #2b8a3e; --c8: #a33ea1; --c9: #5c5f99; }
@media (prefers-color-scheme: dark) { :root { --ground: #14171c; --panel: #1c2026; --text: #e6e9ee; --dim: #a3acb8;
  --rule: #2c323a; --grid: #2f363f; --warn: #ffc266; --warn-ground: #33270f;
  --c0: #a9b1bc; --c1: #5aa2ff; --c2: #ff9a4d; --c3: #ff7aa2; --c4: #3fc9b7; --c5: #b197fc; --c6: #e0bd3c;
  --c7: #69cf7c; --c8: #e38de0; --c9: #9fa3f0; } }
body { margin: 0; background: var(--ground); color: var(--text); font: 16px/1.5 system-ui, sans-serif; }
main { max-width: 1000px; margin: 0 auto; padding: 24px 20px 64px; }
h1 { font-size: 1.6rem; line-height: 1.25; margin: 0 0 12px; }
h2 { font-size: 1.2rem; margin: 40px 0 6px; }
h3 { font-size: 1rem; margin: 16px 0 4px; font-weight: 600; }
p { margin: 4px 0 12px; max-width: 46rem; }
small { color: var(--dim); font-size: .8125rem; }
ul.legend { list-style: none; margin: 0 0 12px; padding: 0; }
.legend li { margin: 2px 0; }
.legend li b, .legend li { color: var(--text); }
.swatch { width: 16px; height: 16px; vertical-align: -3px; margin-right: 6px; }
.keys span { margin-right: 18px; white-space: nowrap; font-size: .875rem; }
figure { margin: 0; background: var(--panel); border: 1px solid var(--rule); border-radius: 8px; padding: 14px 12px; }
.plots { overflow-x: auto; }
.plots svg { display: block; width: 100%; min-width: 560px; height: auto; margin-top: 8px; }
.plots > div { display: inline-block; width: 49%; min-width: 330px; vertical-align: top; }
.plots > div svg { min-width: 320px; }
.warning { background: var(--warn-ground); color: var(--warn); border-radius: 6px; padding: 6px 12px; margin: 10px 0;
  font-weight: 600; max-width: none; }
details { border: 1px solid var(--rule); border-radius: 8px; padding: 8px 14px; }
summary { cursor: pointer; font-weight: 600; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
.facts th { text-align: left; font-weight: 400; color: var(--dim); padding: 2px 16px 2px 0; vertical-align: top;
  white-space: nowrap; }
.facts td { padding: 2px 0; overflow-wrap: anywhere; }
.wide { overflow-x: auto; }
.figures th, .figures td { border-bottom: 1px solid var(--rule); padding: 6px 14px 6px 0; vertical-align: top; }
.figures thead th { text-align: right; }
.figures tbody th { text-align: left; font-weight: 400; min-width: 12rem; }
.figures td { text-align: right; white-space: nowrap; }
.figures small { display: block; }
.none { color: var(--dim); }
svg text { fill: var(--text); font: 13px system-ui, sans-serif; }
svg .heading { font-weight: 600; }
svg .tick, svg .axis { fill: var(--dim); font-size: 12px; }
svg .note { fill: var(--dim); font-size: 12px; paint-order: stroke; stroke: var(--panel); stroke-width: 4px; }
svg .grid { stroke: var(--grid); }
svg .row { stroke: var(--rule); }
svg .reference { stroke: var(--dim); stroke-width: 1.5; stroke-dasharray: 5 4; }
svg .dot { fill: var(--c); }
svg .sample { fill: var(--c); fill-opacity: .45; }
svg .interval { stroke: var(--c); stroke-width: 2; stroke-opacity: .6; }
svg .median { stroke: var(--c); stroke-width: 2.5; }
svg .curve { fill: none; stroke: var(--c); stroke-width: 2; }
svg .hollow { fill: none; stroke: var(--c); stroke-width: 1.6; }
.published { --c: var(--dim); }
""" + "".join(f".c{number} {{ --c: var(--c{number}); }}\n" for number in range(10))
