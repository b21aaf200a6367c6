"""The style sheet of the report's page."""

__all__ = ["STYLE"]

# Cells carry their colour as a translucent layer, so that it suits both schemes.
# Figures are drawn for white paper and keep it in the dark.
STYLE = """
:root {
  color-scheme: light dark;
  --paper: #f6f7f8; --card: #ffffff; --ink: #16191d; --muted: #5b636d;
  --line: #dde1e6; --accent: #0061a0; --fault: #b3390b;
}
@media (prefers-color-scheme: dark) {
  :root {
    --paper: #121418; --card: #1b1e24; --ink: #e9ecf0; --muted: #a2abb6;
    --line: #323841; --accent: #7cc0f2; --fault: #ff9a6b;
  }
}
* { box-sizing: border-box; }
html { -webkit-text-size-adjust: 100%; }
body {
  margin: 0; background: var(--paper); color: var(--ink);
  font: 16px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, sans-serif;
}
main { max-width: 1240px; margin: 0 auto; padding: 1.5rem clamp(0.9rem, 3vw, 2.5rem); }
h1 { font-size: clamp(1.5rem, 5vw, 2.1rem); line-height: 1.2; margin: 0.3rem 0 0.4rem;
  overflow-wrap: anywhere; }
h2 { font-size: 1.35rem; margin: 2.6rem 0 0.3rem; padding-top: 0.6rem;
  border-top: 1px solid var(--line); }
h3 { font-size: 1rem; margin: 1.4rem 0 0.5rem; }
p { margin: 0.4rem 0; max-width: 48rem; }
.note { color: var(--muted); font-size: 0.9rem; }
a { color: var(--accent); }
nav { margin: 0.8rem 0; display: flex; flex-wrap: wrap; gap: 0.3rem 1.1rem; }
dl { display: grid; grid-template-columns: minmax(6.5rem, auto) 1fr; gap: 0.25rem 1rem;
  margin: 0.8rem 0; }
dt { color: var(--muted); }
dd { margin: 0; overflow-wrap: anywhere; }
.scroll { margin: 0.7rem 0; overflow-x: auto; background: var(--card);
  border: 1px solid var(--line); border-radius: 8px;
  max-width: max-content; width: 100%; }
table { border-collapse: separate; border-spacing: 0; width: 100%;
  font-variant-numeric: tabular-nums; font-size: 0.9rem; }
th, td { padding: 0.4rem 0.7rem; text-align: right; white-space: nowrap;
  border-bottom: 1px solid var(--line); }
tr:last-child > * { border-bottom: 0; }
thead th { font-weight: 600; vertical-align: bottom; }
thead .setting { white-space: normal; max-width: 12rem; }
th:first-child { position: sticky; left: 0; z-index: 1; text-align: left;
  background: var(--card); border-right: 1px solid var(--line); }
tbody th { font-weight: 500; white-space: normal; }
@media (max-width: 40rem) {
  table { font-size: 0.82rem; }
  th, td { padding: 0.35rem 0.5rem; }
  th:first-child { max-width: 7.2rem; }
}
td small { color: inherit; opacity: 0.72; font-size: 0.78rem; display: block; }
td.best { font-weight: 700; }
td.best small { font-weight: 400; }
td.failed, .fault { color: var(--fault); opacity: 1; }
.published { color: var(--muted); border-left: 0; }
.first { border-left: 2px solid var(--line); }
tr.mean > * { border-top: 2px solid var(--line); }
.key { display: flex; flex-wrap: wrap; align-items: center; gap: 0.5rem;
  margin: 0.5rem 0; color: var(--muted); font-size: 0.85rem; }
.key i { width: 7rem; height: 0.8rem; border-radius: 4px; background:
  linear-gradient(to right, rgb(0 114 178 / 0.5), rgb(0 114 178 / 0),
  rgb(213 94 0 / 0), rgb(213 94 0 / 0.5)); border: 1px solid var(--line); }
.figures { display: grid; gap: 0.7rem; margin: 1rem 0;
  grid-template-columns: repeat(auto-fill, minmax(min(100%, 17rem), 1fr)); }
.figures.wide { grid-template-columns: repeat(auto-fit, minmax(min(100%, 22rem), 1fr));
  max-width: 60rem; }
.legend { display: flex; flex-wrap: wrap; gap: 0.2rem 1.1rem; padding: 0.5rem 0.8rem;
  background: #ffffff; color: #16191d; border: 1px solid var(--line);
  border-radius: 8px; font-size: 0.85rem; }
.legend span { display: inline-flex; align-items: center; gap: 0.3rem;
  overflow-wrap: anywhere; }
figure { margin: 0; background: #ffffff; border: 1px solid var(--line);
  border-radius: 8px; padding: 0.5rem; display: flex; align-items: center;
  justify-content: center; }
figure img { display: block; width: 100%; max-width: 30rem; height: auto; }
pre { background: var(--card); border: 1px solid var(--line); border-radius: 8px;
  padding: 0.8rem; overflow-x: auto; font-size: 0.82rem; line-height: 1.45; }
pre.command { white-space: pre-wrap; overflow-wrap: anywhere; }
details { margin: 1.2rem 0; }
details > .legend { margin-top: 0.7rem; }
#failures summary, #warnings summary { font-weight: 400; }
#failures details, #warnings details { border: 1px solid var(--line);
  border-radius: 8px; background: var(--card); padding: 0.5rem 0.8rem;
  margin: 0.5rem 0; }
details pre { border: 0; padding: 0.5rem 0 0; margin: 0; }
summary { cursor: pointer; font-weight: 600; overflow-wrap: anywhere; }
summary span { color: var(--fault); }
footer { margin: 2.5rem 0 1rem; color: var(--muted); font-size: 0.85rem; }
"""
