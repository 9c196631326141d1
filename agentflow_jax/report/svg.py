"""Matplotlib figures as inline SVG that takes its colours from the page.

Pictures are painted in placeholder colours; on the way out each becomes a CSS
variable of the page, so that one picture serves light and dark. The same
figures give the same bytes: no dates, no random ids.
"""

import html
import io
import re
from collections.abc import Callable

from matplotlib import axes, figure, style, ticker

# Placeholder colour -> CSS variable. Nothing else in a picture is that dark, so
# a placeholder never collides with a colour that is meant.
INK = '#000001'
MUTED = '#000002'
GRID = '#000003'
BEFORE = '#000004'
AFTER = '#000005'
ORACLE = '#000006'
RANDOM = '#000007'
EMPTY = '#000008'
TEAL = '#000009'
RED = '#00000a'

_VARIABLES = {
  INK: 'ink',
  MUTED: 'muted',
  GRID: 'grid',
  BEFORE: 'before',
  AFTER: 'after',
  ORACLE: 'oracle',
  RANDOM: 'random',
  EMPTY: 'empty',
  TEAL: 'teal',
  RED: 'red',
}

_NARROW = 6.0  # Inch.
_STYLE = {
  'axes.axisbelow': True,
  'axes.edgecolor': GRID,
  'axes.facecolor': 'none',
  'axes.grid': True,
  'axes.labelcolor': MUTED,
  'axes.labelsize': 9,
  'axes.spines.left': False,
  'axes.spines.right': False,
  'axes.spines.top': False,
  'axes.titlecolor': INK,
  'axes.titlelocation': 'left',
  'axes.titlesize': 9,
  'figure.facecolor': 'none',
  'font.size': 9,
  'grid.color': GRID,
  'grid.linewidth': 0.8,
  'legend.borderaxespad': 0,
  'legend.fontsize': 9,
  'legend.frameon': False,
  'legend.handlelength': 1.4,
  'lines.linewidth': 1.8,
  'savefig.facecolor': 'none',
  'savefig.edgecolor': 'none',
  'svg.fonttype': 'none',  # Text stays text: it can be read out and searched.
  'text.color': INK,
  'text.parse_math': False,  # A '$' in a tool's name is a '$'.
  'xtick.color': GRID,
  'xtick.labelcolor': MUTED,
  'ytick.color': GRID,
  'ytick.labelcolor': MUTED,
  'ytick.major.size': 0,
}


def render(
  name: str,
  label: str,
  size: tuple[float, float],
  paint: Callable[[figure.Figure], None],
) -> str:
  """Paints a figure and returns it as an <svg> element for the page.

  Args:
    name: unique on the page; prefixes the element's ids.
    label: description of the picture, for screen readers.
    size: width and height [inch]; the page scales the picture to its column.
    paint: draws into an empty figure, in this module's colours.
  """
  # From the library's own defaults: a user's matplotlibrc changes nothing here.
  with style.context(['default', _STYLE | {'svg.hashsalt': name}]):
    canvas = figure.Figure(figsize=size, layout='constrained')
    paint(canvas)
    buffer = io.StringIO()
    metadata = dict.fromkeys(('Date', 'Creator', 'Format', 'Type'))
    canvas.savefig(buffer, format='svg', metadata=metadata)
  return _inline(buffer.getvalue(), name, label)


def responsive(
  name: str,
  label: str,
  wide: tuple[float, float],
  narrow: tuple[float, float],
  paint: Callable[[figure.Figure], None],
) -> str:
  """Paints a figure twice: for a wide window, and for a telephone.

  Scaled down to a telephone, a wide picture could not be read. The page shows one of
  the two.

  Args:
    name: the same argument of `render`.
    label: the same argument of `render`.
    wide: width and height for a wide window [inch].
    narrow: width and height for a telephone [inch].
    paint: the same argument of `render`; `is_narrow` tells it which figure it paints.
  """
  return (
    f'<div class="wide">{render(name, label, wide, paint)}</div>'
    f'<div class="narrow">{render(f"{name}-narrow", label, narrow, paint)}</div>'
  )


def is_narrow(canvas: figure.Figure) -> bool:
  """Returns whether a figure is one for a telephone or for half of the page."""
  return canvas.get_figwidth() < _NARROW


def step_axis(ax: axes.Axes) -> None:
  """Labels the x axis with training steps."""
  ax.set_xlabel('step')
  ax.xaxis.set_major_locator(ticker.MaxNLocator(6, integer=True))
  ax.grid(visible=False, axis='x')


def percent_axis(axis) -> None:
  """Labels an axis of shares in percent."""
  # As many decimals as the range needs, so that no two labels are the same.
  axis.set_major_formatter(ticker.PercentFormatter(1.0))


def legend(ax: axes.Axes) -> None:
  """Puts a legend above the axes, in one column where there is little room."""
  canvas = ax.get_figure(root=True)
  columns = 1 if canvas is None or is_narrow(canvas) else 3
  ax.legend(
    loc='lower left', bbox_to_anchor=(0, 1.02), ncols=columns, columnspacing=1.4
  )


def _inline(svg: str, name: str, label: str) -> str:
  """Strips what only a file of its own needs and binds the page's colours."""
  svg = svg[svg.index('<svg') :].strip()
  for part in ('metadata', 'style'):  # A <style> would reach the whole page.
    svg = re.sub(rf'<{part}\b.*?</{part}>\s*', '', svg, flags=re.DOTALL)
  head, body = svg.split('>', 1)
  found = re.search(r'viewBox="[^"]*"', head)
  assert found is not None  # matplotlib writes one.
  box = found.group()
  body = body.replace('xlink:href=', 'href=')
  used = set(re.findall(r'(?:href="#|url\(#)([^")]+)', body))

  def keep_id(match: re.Match[str]) -> str:
    return f' id="{name}-{match[1]}"' if match[1] in used else ''

  body = re.sub(r' id="([^"]*)"', keep_id, body)
  body = re.sub(r'(href="#|url\(#)', rf'\g<1>{name}-', body)
  for color, variable in _VARIABLES.items():
    body = re.sub(rf'{color}\b', f'var(--{variable})', body)
  body = re.sub(r' font-family: [^;"]*', ' font-family: var(--sans)', body)
  body = re.sub(r"(font: [^;\"']*px) '[^;\"]*", r'\1 var(--sans)', body)
  label = html.escape(label)
  return f'<svg {box} role="img" aria-label="{label}">{body}'
