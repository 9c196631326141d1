"""Finds the character encoding of a page, as browsers do.

The order is that of the HTML standard: a byte order mark, the charset of the HTTP
header, the page's own <meta>, and its XML declaration. Names mean what the
Encoding standard says: "latin1" and "ascii" are windows-1252, "gb2312" is GBK.
"""

import codecs
import re
from collections.abc import Iterator

XML = frozenset({'application/xhtml+xml', 'application/xml', 'text/xml'})
HTML = frozenset({'text/html', 'application/xhtml+xml', ''})

# Python's name of an encoding: the labels that pages use for it.
_LABELS = {
  'utf-8': 'unicode-1-1-utf-8 unicode11utf8 unicode20utf8 utf-8 utf8 x-unicode20utf8',
  'utf-16-le': 'csunicode iso-10646-ucs-2 ucs-2 unicode unicodefeff utf-16 utf-16le',
  'utf-16-be': 'unicodefffe utf-16be',
  'cp866': '866 cp866 csibm866 ibm866',
  'iso8859-2': 'csisolatin2 iso-8859-2 iso-ir-101 iso8859-2 iso88592'
  ' iso_8859-2 iso_8859-2:1987 l2 latin2',
  'iso8859-3': 'csisolatin3 iso-8859-3 iso-ir-109 iso8859-3 iso88593'
  ' iso_8859-3 iso_8859-3:1988 l3 latin3',
  'iso8859-4': 'csisolatin4 iso-8859-4 iso-ir-110 iso8859-4 iso88594'
  ' iso_8859-4 iso_8859-4:1988 l4 latin4',
  'iso8859-5': 'csisolatincyrillic cyrillic iso-8859-5 iso-ir-144 iso8859-5'
  ' iso88595 iso_8859-5 iso_8859-5:1988',
  'iso8859-6': 'arabic asmo-708 csiso88596e csiso88596i csisolatinarabic'
  ' ecma-114 iso-8859-6 iso-8859-6-e iso-8859-6-i iso-ir-127'
  ' iso8859-6 iso88596 iso_8859-6 iso_8859-6:1987',
  'iso8859-7': 'csisolatingreek ecma-118 elot_928 greek greek8 iso-8859-7'
  ' iso-ir-126 iso8859-7 iso88597 iso_8859-7 iso_8859-7:1987'
  ' sun_eu_greek',
  'iso8859-8': 'csiso88598e csiso88598i csisolatinhebrew hebrew iso-8859-8'
  ' iso-8859-8-e iso-8859-8-i iso-ir-138 iso8859-8 iso88598'
  ' iso_8859-8 iso_8859-8:1988 logical visual',
  'iso8859-10': 'csisolatin6 iso-8859-10 iso-ir-157 iso8859-10 iso885910 l6 latin6',
  'iso8859-13': 'iso-8859-13 iso8859-13 iso885913',
  'iso8859-14': 'iso-8859-14 iso8859-14 iso885914',
  'iso8859-15': 'csisolatin9 iso-8859-15 iso8859-15 iso885915 iso_8859-15 l9',
  'iso8859-16': 'iso-8859-16',
  'koi8-r': 'cskoi8r koi koi8 koi8-r koi8_r',
  'koi8-u': 'koi8-ru koi8-u',
  'mac-roman': 'csmacintosh mac macintosh x-mac-roman',
  'mac-cyrillic': 'x-mac-cyrillic x-mac-ukrainian',
  'cp874': 'dos-874 iso-8859-11 iso8859-11 iso885911 tis-620 windows-874',
  'cp1250': 'cp1250 windows-1250 x-cp1250',
  'cp1251': 'cp1251 windows-1251 x-cp1251',
  'cp1252': 'ansi_x3.4-1968 ascii cp1252 cp819 csisolatin1 ibm819 iso-8859-1'
  ' iso-ir-100 iso8859-1 iso88591 iso_8859-1 iso_8859-1:1987 l1'
  ' latin1 us-ascii windows-1252 x-cp1252 x-user-defined',
  'cp1253': 'cp1253 windows-1253 x-cp1253',
  'cp1254': 'cp1254 csisolatin5 iso-8859-9 iso-ir-148 iso8859-9 iso88599'
  ' iso_8859-9 iso_8859-9:1989 l5 latin5 windows-1254 x-cp1254',
  'cp1255': 'cp1255 windows-1255 x-cp1255',
  'cp1256': 'cp1256 windows-1256 x-cp1256',
  'cp1257': 'cp1257 windows-1257 x-cp1257',
  'cp1258': 'cp1258 windows-1258 x-cp1258',
  'gb18030': 'chinese csgb2312 csiso58gb231280 gb18030 gb2312 gb_2312'
  ' gb_2312-80 gbk iso-ir-58 x-gbk',
  'big5hkscs': 'big5 big5-hkscs cn-big5 csbig5 x-x-big5',
  # Unlike Python's euc_jp it has the numbers in circles and the like.
  'euc_jisx0213': 'cseucpkdfmtjapanese euc-jp x-euc-jp',
  'iso2022_jp': 'csiso2022jp iso-2022-jp',
  'cp932': 'csshiftjis ms932 ms_kanji shift-jis shift_jis sjis windows-31j x-sjis',
  'cp949': 'cseuckr csksc56011987 euc-kr iso-ir-149 korean ks_c_5601-1987'
  ' ks_c_5601-1989 ksc5601 ksc_5601 windows-949',
  # Browsers refuse these, since scripts may hide in them. Here none is run.
  'hz': 'hz-gb-2312',
  'iso2022_kr': 'csiso2022kr iso-2022-kr',
}
_NAMES = {label: name for name, labels in _LABELS.items() for label in labels.split()}
# Other encodings of Python in which texts are written. Python's remaining ones
# are refused: "idna", for names of hosts, takes quadratic time.
_OTHERS = re.compile(r'utf-|ascii|iso8859|cp\d|koi8|gb|big5|euc|shift_jis|mac|iso2022')
_LONGEST_LABEL = 40
_MARKS = (
  (codecs.BOM_UTF8, 'utf-8'),
  (codecs.BOM_UTF16_BE, 'utf-16-be'),
  (codecs.BOM_UTF16_LE, 'utf-16-le'),
)
# "<?x" in UTF-16 without a mark.
_WIDE = ((b'<\0?\0x\0', 'utf-16-le'), (b'\0<\0?\0x', 'utf-16-be'))
_DECLARATION = re.compile(
  rb'<\?xml\s[^>]*?\bencoding\s*=\s*(?:"([^"<>]*)"|\'([^\'<>]*)\')'
)
# Pages name their encoding in their head. A browser looks at 1,024
# bytes before it parses, and begins again where it finds the tag later.
_SCANNED = 1 << 16
_TAG_NAME = re.compile(rb'<([a-z][^\s/>]*)', re.IGNORECASE)
_BETWEEN = re.compile(rb'[\s/]*')
_FIELD = re.compile(rb'(.[^\s/>=]*)(\s*=\s*)?', re.DOTALL)
_UNQUOTED = re.compile(rb'[^\s>]*')
# Elements whose text holds no tags.
_TEXT_ONLY = {
  name: re.compile(rb'</' + name + rb'\b', re.IGNORECASE)
  for name in (b'script', b'style', b'title', b'textarea')
}
_CHARSET = re.compile(
  rb'charset\s*=\s*(?:"([^"]*)"|\'([^\']*)\'|([^\s;"\']+))', re.IGNORECASE
)


def named(label: str) -> str:
  """Returns Python's name of an encoding; '' for a label that names none."""
  label = label.strip(' \t\n\f\r').lower()
  if label in _NAMES or len(label) > _LONGEST_LABEL:
    return _NAMES.get(label, '')
  try:
    name = codecs.lookup(label).name
  except (LookupError, ValueError):  # No such name, or none at all.
    return ''
  return _NAMES.get(name, name) if _OTHERS.match(name) else ''


def of(content: bytes, header: str = '', kind: str = 'text/plain') -> str:
  """Returns Python's name of a page's encoding.

  Args:
    content: bytes of the page.
    header: charset of the HTTP header; '' for none.
    kind: media type of the page: HTML and XML can name their encoding.
  """
  for mark, name in _MARKS:
    if content.startswith(mark):
      return name
  if name := named(header):
    return name
  if kind in XML | HTML:
    for mark, name in _WIDE:
      if content.startswith(mark):
        return name
    labels = [*_meta(content)] if kind in HTML else []
    declared = _declaration(content)
    labels = declared + labels if kind in XML else labels + declared
    for label in labels:
      name = named(label.decode('latin-1'))
      # The label was read as ASCII, so the page cannot be in UTF-16 or UTF-32.
      name = 'utf-8' if name.startswith(('utf-16', 'utf-32')) else name
      if name and not (kind in XML and not declared and _is_utf8(content)):
        return name
  return _guessed(content) if kind in HTML - XML else 'utf-8'


def decode(content: bytes, header: str = '', kind: str = 'text/plain') -> str:
  """Returns a page's text; wrong bytes become U+FFFD. Arguments as for `of`."""
  text = content.decode(of(content, header, kind), 'replace')
  return text.removeprefix('\ufeff')


def _meta(content: bytes) -> Iterator[bytes]:
  """Yields the labels in a page's <meta> tags."""
  for fields in _meta_tags(content[:_SCANNED]):
    if b'charset' in fields:
      yield fields[b'charset']
    elif fields.get(b'http-equiv', b'').strip().lower() == b'content-type':
      if found := _CHARSET.search(fields.get(b'content', b'')):
        yield found[1] or found[2] or found[3] or b''


def _meta_tags(head: bytes) -> Iterator[dict[bytes, bytes]]:
  """Yields the attributes of the <meta> tags outside of texts and comments.

  Args:
    head: beginning of a page. It is read once, from left to right, up to the
      first comment, tag or element that is not closed in it.
  """
  at = head.find(b'<')
  while at >= 0:
    end = at + 1
    if head.startswith(b'<!--', at):
      end = head.find(b'-->', at + 2)
    elif head.startswith((b'<!', b'</', b'<?'), at):
      end = head.find(b'>', at)
    elif tag := _TAG_NAME.match(head, at):
      name = tag[1].lower()
      fields, end = _attributes(head, tag.end())
      if end >= 0 and name == b'meta':
        yield fields
      if end >= 0 and name in _TEXT_ONLY:
        closing = _TEXT_ONLY[name].search(head, end)
        end = closing.start() if closing else -1
    at = head.find(b'<', end) if end >= 0 else -1


def _attributes(head: bytes, at: int) -> tuple[dict[bytes, bytes], int]:
  """Returns a tag's attributes and the place of its end; -1 for no end."""
  fields: dict[bytes, bytes] = {}
  while True:
    between = _BETWEEN.match(head, at)
    at = between.end() if between else at
    field = _FIELD.match(head, at)
    if field is None:
      return fields, -1
    if field[1].startswith(b'>'):
      return fields, at
    at, value = field.end(), b''
    if field[2]:
      quote = head[at : at + 1]
      if quote in (b'"', b"'"):
        end = head.find(quote, at + 1)
        if end < 0:
          return fields, -1
        value, at = head[at + 1 : end], end + 1
      else:
        unquoted = _UNQUOTED.match(head, at)
        value = unquoted[0] if unquoted else b''
        at += len(value)
    fields.setdefault(field[1].lower(), value)


def _declaration(content: bytes) -> list[bytes]:
  found = _DECLARATION.match(content[:_SCANNED])
  return [found[1] or found[2] or b''] if found else []


def _guessed(content: bytes) -> str:
  """Returns the encoding of HTML that names none: UTF-8, or windows-1252."""
  text = content.decode('utf-8', 'replace')
  wrong = text.count('\ufffd')
  right = len(text) - len(text.encode('ascii', 'ignore')) - wrong
  return 'utf-8' if right >= wrong else 'cp1252'


def _is_utf8(content: bytes) -> bool:
  try:
    content.decode('utf-8')
  except UnicodeDecodeError:
    return False
  return True
