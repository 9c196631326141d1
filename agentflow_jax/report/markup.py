"""The report's page: escaping, a few elements, and the style sheet.

Whatever a model or a tool wrote passes `text`. The page carries no script and
a policy that forbids any, and refers to nothing outside itself.
"""

import html
import re
import urllib.parse
from collections.abc import Iterable, Sequence

# Everything but newline and tab: terminal escapes, NUL, lone surrogates.
_UNPRINTABLE = re.compile('[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff]')

_HEAD = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy"
 content="default-src 'none'; style-src 'unsafe-inline'">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<title>{title}</title>
<style>{style}</style>
</head>
<body>
<main>
{body}
</main>
</body>
</html>
"""

_STYLE = """
:root {
  --sans: system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue",
    Arial, sans-serif;
  --mono: ui-monospace, SFMono-Regular, Menlo, Consolas, "DejaVu Sans Mono",
    monospace;
  --page: #fbfaf8; --card: #ffffff; --line: #e4e1db; --code: #f5f3ef;
  --ink: #1e2227; --muted: #626b75; --grid: #e6e4df;
  --before: #98a1ab; --after: #2462b8; --oracle: #3a9468; --random: #d08226;
  --empty: #a25fb3; --teal: #1d8c99; --red: #c0413b;
  --good: #24734c; --bad: #b03530;
}
@media (prefers-color-scheme: dark) {
  :root {
    --page: #14171b; --card: #1b1f24; --line: #30363d; --code: #14181c;
    --ink: #e4e7ea; --muted: #9ba5af; --grid: #2d333a;
    --before: #77828d; --after: #6ba6f5; --oracle: #58bd8a; --random: #e6a04d;
    --empty: #c58ad6; --teal: #4bb8c4; --red: #ec7a72;
    --good: #6fcf9b; --bad: #f08b84;
  }
}
* { box-sizing: border-box; }
body {
  margin: 0; background: var(--page); color: var(--ink);
  font: 16px/1.55 var(--sans);
}
main { max-width: 62rem; margin: 0 auto; padding: 2.5rem 1.25rem 5rem; }
h1 { font-size: 1.9rem; line-height: 1.2; margin: 0; letter-spacing: -.01em; }
h2 {
  font-size: 1.25rem; margin: 3rem 0 .75rem; padding-top: 1.1rem;
  border-top: 1px solid var(--line);
}
h3 { font-size: 1rem; margin: 0 0 .5rem; }
p { margin: .5rem 0; max-width: 46rem; }
a { color: var(--after); }
.muted, figcaption, .note { color: var(--muted); }
.note, figcaption { font-size: .875rem; line-height: 1.45; }
.lead { font-size: 1.15rem; margin: .75rem 0 1.25rem; }
.warning { border-left: 3px solid var(--bad); padding-left: .75rem; }
.good { color: var(--good); } .bad { color: var(--bad); }
.tiles {
  display: grid; gap: .75rem; margin: 1.5rem 0;
  grid-template-columns: repeat(auto-fit, minmax(9.5rem, 1fr));
}
.tile, figure, .turns > li, .answer {
  background: var(--card); border: 1px solid var(--line); border-radius: 8px;
}
.tile { padding: .7rem .9rem; }
.tile b {
  display: block; font-size: 1.35rem; font-weight: 600;
  font-variant-numeric: tabular-nums; overflow-wrap: anywhere;
}
.tile span { color: var(--muted); font-size: .85rem; }
figure { margin: 1rem 0; padding: 1rem 1.1rem .9rem; }
figure svg { display: block; width: 100%; height: auto; }
.narrow { display: none; }
svg * { stroke-linejoin: round; stroke-linecap: butt; }
figcaption { margin-top: .5rem; }
.grid {
  display: grid; gap: 1rem;
  grid-template-columns: repeat(auto-fit, minmax(min(24rem, 100%), 1fr));
}
.grid figure { margin: 0; }
/* Of an odd number the last one has the row, and leaves no hole. */
.grid figure:last-child:nth-child(odd) { grid-column: 1 / -1; }
.grid figure:last-child:nth-child(odd) svg { max-width: 29rem; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
.full table { width: 100%; }
th, td {
  text-align: right; padding: .4rem .8rem; border-bottom: 1px solid var(--line);
  vertical-align: baseline; white-space: nowrap;
}
th { font-weight: 600; font-size: .85rem; color: var(--muted); }
th:first-child, td:first-child { text-align: left; padding-left: .2rem; }
tr.key td { font-weight: 600; background: var(--card); }
td small { display: block; color: var(--muted); font-weight: 400; }
td.wrap { white-space: normal; overflow-wrap: anywhere; text-align: left; }
ul.checks { list-style: none; padding: 0; margin: .75rem 0; }
ul.checks li {
  display: flex; gap: .5rem; align-items: baseline; margin: .2rem 0;
}
ul.checks b { flex: 0 0 3.6rem; font-size: .85rem; }
details { margin: .75rem 0; }
summary { cursor: pointer; color: var(--muted); }
.example { margin: 2rem 0 2.75rem; }
.question { font-size: 1.05rem; margin-bottom: .25rem; }
.sides {
  display: grid; gap: 1rem; margin-top: .75rem; align-items: start;
  grid-template-columns: repeat(auto-fit, minmax(min(24rem, 100%), 1fr));
}
.side { min-width: 0; }
.turns { list-style: none; margin: 0; padding: 0; }
.turns > li { padding: .7rem .9rem; margin-bottom: .6rem; }
.turns h4, .answer h4 {
  margin: .55rem 0 .15rem; font-size: .78rem; font-weight: 600;
  color: var(--muted);
}
.turns h4:first-child, .answer h4:first-child { margin-top: 0; }
.turns h4.bad { color: var(--bad); }
.answer { padding: .7rem .9rem; border-left: 4px solid var(--before); }
.answer.right { border-left-color: var(--good); }
.answer.wrong { border-left-color: var(--bad); }
pre, .said {
  white-space: pre-wrap; overflow-wrap: anywhere; unicode-bidi: isolate;
  margin: 0;
}
pre {
  font: .82rem/1.45 var(--mono); background: var(--code); padding: .45rem .6rem;
  border-radius: 5px; max-height: 18rem; overflow-y: auto;
}
pre.failed { box-shadow: inset 3px 0 0 var(--bad); }
dt { font-weight: 600; margin-top: .6rem; }
dd { margin: 0; max-width: 46rem; }
@media (max-width: 44rem) {
  main { padding: 1.5rem .75rem 3rem; }
  figure { padding: .75rem .6rem; }
  .wide { display: none; }
  .narrow { display: block; }
  th, td { padding: .3rem .2rem; font-size: .78rem; white-space: normal; }
  th { font-size: .7rem; }
}
@media print { pre { max-height: none; } figure { break-inside: avoid; } }
"""


def text(value: object, limit: int | None = None) -> str:
  """Escapes untrusted text for element content and quoted attributes.

  Args:
    value: anything with a str().
    limit: characters at most; what is cut is counted in the text.

  Returns:
    HTML. Control characters and lone surrogates become U+FFFD.
  """
  plain = str(value)
  if limit is not None and len(plain) > limit:
    rest = len(plain) - limit
    plain = f'{plain[:limit]}\n[{rest:,} more characters]'
  return html.escape(_UNPRINTABLE.sub('\ufffd', plain))


def page(title: str, sections: Iterable[str]) -> str:
  """The whole document; sections are HTML, title is text."""
  body = '\n'.join(section for section in sections if section)
  return _HEAD.format(title=text(title), style=_STYLE, body=body)


def section(title: str, *parts: str) -> str:
  """A headed section; '' where all its parts are empty."""
  found = [part for part in parts if part]
  return '\n'.join([f'<h2>{text(title)}</h2>', *found]) if found else ''


def figure(title: str, svg: str, caption: str = '') -> str:
  """A titled picture with a caption (text); '' where there is no picture."""
  if not svg:
    return ''
  caption = f'<figcaption>{text(caption)}</figcaption>' if caption else ''
  return f'<figure><h3>{text(title)}</h3>\n{svg}\n{caption}</figure>'


def link(href: str, title: str) -> str:
  """A link to a file beside the page; both are text."""
  return f'<a href="{text(urllib.parse.quote(href))}">{text(title)}</a>'


def grid(figures: Iterable[str]) -> str:
  """Figures side by side where the window is wide enough."""
  figures = [part for part in figures if part]
  return '<div class="grid">' + '\n'.join(figures) + '</div>' if figures else ''


def table(
  header: Sequence[str],
  rows: Sequence[Sequence[str]],
  *,
  key_row: int | None = None,
  full: bool = True,
) -> str:
  """A table whose cells are HTML already; key_row is set in bold."""
  if not rows:
    return ''
  names = ''.join(f'<th scope="col">{text(name)}</th>' for name in header)
  lines = [f'<tr>{names}</tr>']
  for i, row in enumerate(rows):
    cells = ''.join(f'<td>{cell}</td>' for cell in row)
    mark = ' class="key"' if i == key_row else ''
    lines.append(f'<tr{mark}>{cells}</tr>')
  kind = 'scroll full' if full else 'scroll'
  return f'<div class="{kind}"><table>' + '\n'.join(lines) + '</table></div>'


def facts(pairs: Iterable[tuple[str, object]]) -> str:
  """A two-column table of names and values (both text)."""
  rows = [
    f'<tr><td>{text(name)}</td><td class="wrap">{text(value)}</td></tr>'
    for name, value in pairs
  ]
  if not rows:
    return ''
  return '<div class="scroll"><table>' + '\n'.join(rows) + '</table></div>'
