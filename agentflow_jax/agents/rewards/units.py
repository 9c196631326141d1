"""Units of measurement as they are written behind numbers."""

import re

# What may follow digits without a space and leaves their value alone.
_SYMBOLS = frozenset(
  # Lengths, areas and speeds.
  'nm um µm μm mm cm dm km in ft yd mi nmi ly au AU km² m² cm² ha kmh kph '
  'mph '
  # Masses and volumes.
  'mg g kg lb lbs oz ml mL cl dl l L gal '
  # Times.
  'ns ms sec secs min mins h hr hrs d yr yrs yo am pm AM PM '
  # Electricity, energy, force, light, sound and data.
  'Hz kHz MHz GHz V kV mV W kW MW GW TW kWh MWh GWh TWh A mA J kJ MJ cal '
  'kcal eV keV MeV GeV N kN Pa kPa MPa hPa bar atm psi dB lm lx Mbps Gbps kbps '
  'KB kB MB GB TB PB KiB MiB GiB TiB '
  # Temperatures, angles, amounts.
  'C F deg rad mol mmol ppm ppb pH rpm px '
  # Money.
  'USD EUR GBP CHF JPY CNY INR'.split()
)
_POWERS = {'square': '2', 'sq': '2', 'cubic': '3', 'cu': '3'}
_WORDS = {
  'meter': 'm',
  'metre': 'm',
  'centimeter': 'cm',
  'centimetre': 'cm',
  'millimeter': 'mm',
  'millimetre': 'mm',
  'kilometer': 'km',
  'kilometre': 'km',
  'mile': 'mi',
  'foot': 'ft',
  'feet': 'ft',
  'inche': 'in',
  'inch': 'in',
  'yard': 'yd',
  'gram': 'g',
  'kilogram': 'kg',
  'pound': 'lb',
  'ounce': 'oz',
  'liter': 'l',
  'litre': 'l',
  'second': 's',
  'minute': 'min',
  'hour': 'h',
  'day': 'd',
  'week': 'week',
  'month': 'month',
  'year': 'yr',
  'degree': 'degree',
  'deg': 'degree',
  'radian': 'rad',
  'dollar': 'usd',
  'cent': 'cent',
  'euro': 'eur',
  'unit': 'unit',
  'percent': '%',
  'sec': 's',
  'hr': 'h',
  'yr': 'yr',
  'lb': 'lb',
  'min': 'min',
  'point': 'point',
}


def is_word(word: str) -> bool:
  """Whether a word of two letters or more is a unit and nothing else."""
  return len(word) > 1 and is_known(word)


def is_known(word: str) -> bool:
  """Whether letters right behind digits are a unit, one letter included."""
  return word in _SYMBOLS or word.lower().removesuffix('s') in _WORDS


def name(said: str) -> str:
  """Returns one name for all spellings of a unit: "miles" and "mi" are "mi"."""
  words, power = [], ''
  for word in re.findall(r'[^\W\d_]+|[\d²³]+|[/^%]', said):
    plain = word.lower().removesuffix('s') or word.lower()
    if plain in _POWERS:
      power = _POWERS[plain]
    elif word not in ('^', 'of', '\u00b0'):
      plain = {'per': '/', '²': '2', '³': '3'}.get(plain) or plain
      words += [_WORDS.get(plain, plain), *([power] if power else [])]
      power = ''
  return ' '.join(words)
