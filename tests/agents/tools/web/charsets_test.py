"""Encodings of pages, in the order and with the names of the standards."""

import pytest

from agentflow_jax.agents.tools.web import charsets

_HTML, _XHTML = 'text/html', 'application/xhtml+xml'
_WORD = '\u0413\u043e\u0440\u043e\u0434'  # 'Town', in Russian


@pytest.mark.parametrize(
  ('charset', 'text'),
  [
    ('', 'h\u00e9'),
    ('UTF-8', 'h\u00e9'),
    ('latin-1', 'h\u00c3\u00a9'),
    ('windows-1252', 'h\u00c3\u00a9'),
    ('punycode', 'h\u00e9'),
    ('zip', 'h\u00e9'),
    ('no such', 'h\u00e9'),
    ('a\0b', 'h\u00e9'),
    ('unicode_escape', 'h\u00e9'),
    ('utf-16', '\uc368\ufffd'),
    ('x' * 9000, 'h\u00e9'),
  ],
)
def test_charsets_of_the_header(charset, text):
  assert charsets.decode('h\u00e9'.encode(), charset) == text


@pytest.mark.parametrize(
  ('label', 'data', 'text'),
  [
    # What the label says in the Encoding standard, and not in Python.
    ('iso-8859-1', b'\x80\x93', '\u20ac\u201c'),
    ('latin1', b'\x80', '\u20ac'),
    ('US-ASCII', b'\xe9', '\u00e9'),
    ('iso-8859-9', b'\x80', '\u20ac'),
    ('gb2312', b'\x81\x40', '\u4e02'),
    ('GBK', b'\xd6\xd0', '\u4e2d'),
    ('shift_jis', b'\x87\x40', '\u2460'),
    ('x-sjis', b'\x82\xa0', '\u3042'),
    ('euc-jp', b'\xad\xa1\xa4\xa2', '\u2460\u3042'),
    ('euc-kr', b'\x81\x41', '\uac02'),
    ('ks_c_5601-1987', b'\xb0\xa1', '\uac00'),
    ('big5', b'\xa4\xa4', '\u4e2d'),
    ('tis-620', b'\xa1', '\u0e01'),
    ('koi8-r', b'\xc7', '\u0433'),
    ('koi8-ru', b'\xa4', '\u0454'),
    ('windows-1251', b'\xe3', '\u0433'),
    ('x-cp1251', b'\xe3', '\u0433'),
    ('866', b'\xa3', '\u0433'),
    ('iso-8859-8-i', b'\xe0', '\u05d0'),
    ('logical', b'\xe0', '\u05d0'),
    ('x-mac-cyrillic', b'\xe3', '\u0433'),
    ('macintosh', b'\x8e', '\u00e9'),
    ('iso-2022-jp', b'\x1b$B$"', '\u3042'),
    ('unicode', b'a\0', 'a'),
    ('utf-16be', b'\0a', 'a'),
    (' UTF8\n', b'a', 'a'),
  ],
)
def test_labels_of_encodings(label, data, text):
  assert charsets.decode(data, label) == text
  page = f'<meta charset="{label}">'.encode() + data
  if not charsets.named(label).startswith('utf-16'):
    assert charsets.decode(page, '', _HTML).endswith(text)


@pytest.mark.parametrize(
  ('head', 'charset'),
  [
    ('<meta charset="windows-1251">', 'cp1251'),
    ("<META CharSet = 'Windows-1251' />", 'cp1251'),
    ('<meta charset=windows-1251>', 'cp1251'),
    ('<meta name="a>b" charset=windows-1251>', 'cp1251'),
    ('<meta http-equiv="Content-Type" content="text/html; charset=koi8-r">', 'koi8-r'),
    (
      '<meta content=\'text/html;charset = "koi8-r"\' http-equiv=content-type>',
      'koi8-r',
    ),
    # A name that is unknown does not hide the next one.
    ('<meta charset=none><meta charset=koi8-r>', 'koi8-r'),
    ('<meta charset=cp866><meta charset=koi8-r>', 'cp866'),
    ('<meta charset=cp866 charset=koi8-r>', 'cp866'),
    # Not tags, or not of this meaning.
    ('<!-- <meta charset=cp866> --><meta charset=koi8-r>', 'koi8-r'),
    ('<script>"<meta charset=cp866>"</script><meta charset=koi8-r>', 'koi8-r'),
    ('<title><meta charset=cp866></title><meta charset=koi8-r>', 'koi8-r'),
    ('<a title="<meta charset=cp866>"><meta charset=koi8-r>', 'koi8-r'),
    ('<!doctype html><meta content="charset=cp866"><meta charset=koi8-r>', 'koi8-r'),
    (
      '<meta http-equiv=refresh content="0;charset=cp866"><meta charset=koi8-r>',
      'koi8-r',
    ),
    # Beyond the 1,024 bytes of the first look.
    ('<style>' + 'x' * 5000 + '</style><meta charset=koi8-r>', 'koi8-r'),
    ('<?xml version="1.0" encoding="koi8-r"?>', 'koi8-r'),
    ("<?xml version='1.0' encoding = 'koi8-r'?>", 'koi8-r'),
    ('<?xml version="1.0" encoding="cp866"?><meta charset=koi8-r>', 'koi8-r'),
    # A label that could be read as ASCII is not one of UTF-16.
    ('<meta charset=utf-16>', 'utf-8'),
    ('<meta charset=utf-32>', 'utf-8'),
    ('<?xml version="1.0" encoding="utf-16"?>', 'utf-8'),
    ('<p>2 < 3</p>', 'utf-8'),
  ],
)
def test_encodings_that_html_declares(head, charset):
  content = f'{head}<p>{_WORD}'.encode(charset)
  assert charsets.decode(content, '', _HTML).endswith(_WORD)
  # The header comes first, and a byte order mark before it.
  content = f'{head}<p>{_WORD}'.encode('iso8859-5')
  assert charsets.decode(content, 'cyrillic', _HTML).endswith(_WORD)
  if charset != 'utf-8':
    assert not charsets.decode(content, 'none', _HTML).endswith(_WORD)
  for mark in ('utf-8-sig', 'utf-16'):
    content = f'{head}<p>{_WORD}'.encode(mark)
    assert charsets.decode(content, 'koi8-r', _HTML) == f'{head}<p>{_WORD}'


def test_encodings_that_xml_declares():
  said = '<?xml version="1.0" encoding="koi8-r"?><meta charset="cp866"/>' + _WORD
  for kind in (_XHTML, 'text/xml', 'application/xml'):
    assert charsets.decode(said.encode('koi8-r'), '', kind) == said
  wide = said.encode('utf-16-le')
  assert charsets.decode(wide, '', 'text/xml') == said
  # Without a declaration XML is UTF-8; where it is not, the tag is better.
  tag = '<meta charset="koi8-r"/>' + _WORD
  assert charsets.decode(tag.encode(), '', _XHTML) == tag
  assert charsets.decode(tag.encode('koi8-r'), '', _XHTML) == tag
  # Plain text declares no encoding.
  assert charsets.decode(said.encode(), '', 'text/plain') == said


def test_the_encoding_of_html_that_declares_none_is_guessed():
  for html in ('<p>caf\u00e9', '<p>\u201cso\u201d'):
    assert charsets.decode(html.encode('cp1252'), '', _HTML) == html
    assert charsets.decode(html.encode(), '', '') == html
  # One byte that is wrong does not make other letters wrong.
  assert charsets.decode('\u00e9\u00e8'.encode() + b'\xff', '', _HTML) == (
    '\u00e9\u00e8\ufffd'
  )


@pytest.mark.parametrize(
  'piece',
  [
    b'<meta ',
    b'<a "',
    b'<a =\'"=',
    b'<script>',
    b'<!--',
    b'<!',
    b'<?xml ',
    b'<meta charset="',
    b'<',
    b'a=" ',
    b'encoding ',
  ],
)
def test_the_encoding_of_any_page_is_found_in_linear_time(piece):
  # Were the time quadratic, this test would take minutes.
  for content in (b'<?xml ' + piece * (1 << 18), piece * (1 << 18)):
    assert charsets.of(content, '', _HTML) == 'utf-8'
