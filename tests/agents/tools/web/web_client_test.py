import asyncio
import gzip
import socket
import zlib

import httpx
import pytest

from agentflow_jax.agents.tools import base
from agentflow_jax.agents.tools.web import addresses, web_client
from tests.agents.tools.web import web_server

Said = web_server.Said

_PUBLIC = (
  '8.8.8.8',
  '1.1.1.1',
  '2606:4700:4700::1111',
  '2a00:1450::1',
  '::ffff:8.8.8.8',
  '64:ff9b::808:808',
  '2002:808:808::1',
)
_CLOSED = (
  '0.0.0.0',
  '10.1.2.3',
  '100.64.0.1',
  '100.100.100.200',
  '127.0.0.1',
  '127.255.255.254',
  '169.254.169.254',
  '169.254.170.2',
  '172.16.0.1',
  '172.31.255.255',
  '192.0.0.192',
  '192.0.2.1',
  '192.168.1.1',
  '198.18.0.1',
  '198.51.100.1',
  '203.0.113.1',
  '224.0.0.1',
  '240.0.0.1',
  '255.255.255.255',
  '168.63.129.16',
  '192.88.99.1',
  '::',
  '::1',
  '::ffff:127.0.0.1',
  '::ffff:169.254.169.254',
  '::127.0.0.1',
  '::8.8.8.8%lo',
  '64:ff9b::7f00:1',
  '64:ff9b::a9fe:a9fe',
  '64:ff9b:1::1',
  '2002:7f00:1::',
  '2002:a00:1::1',
  '2001:0:7f00:1::',
  '2001:db8::1',
  'fc00::1',
  'fd00:ec2::254',
  'fe80::1',
  'fe80::1%eth0',
  'fec0::1',
  'ff02::1',
  '::ffff:0:127.0.0.1',
  '100::1',
  '3fff::1',
  '3fff:fff:ffff::1',
  'localhost',
  '',
  '127.1',
  '0x7f000001',
)


@pytest.mark.parametrize('address', _PUBLIC)
def test_public_addresses(address):
  assert addresses.is_public(address)


@pytest.mark.parametrize('address', _CLOSED)
def test_addresses_that_are_not_public(address):
  assert not addresses.is_public(address)


@pytest.mark.parametrize(
  ('host', 'is_blocked'),
  [
    ('huggingface.co', True),
    ('datasets.huggingface.co', True),
    ('HuggingFace.co.', True),
    ('nothuggingface.co', False),
    ('huggingface.co.evil.org', False),
    ('wikipedia.org', False),
  ],
)
def test_hosts_that_publish_benchmarks(host, is_blocked):
  assert is_blocked == addresses.is_blocked(host, addresses.BENCHMARK_HOSTS)


def fetch(url, resolve=None, config=None, method='get', **options):
  """Fetches, and returns the response (or error) and what was counted."""

  async def run():
    more = {'resolve': resolve} if resolve else {}
    client = web_client.WebClient(
      config or web_client.WebConfig(timeout_seconds=5, max_attempts=2),
      backoff_seconds=0.01,
      **more,
    )
    with base.counting() as counts:
      try:
        return await getattr(client, method)(url, **options), counts
      except (base.BadArguments, web_client.FetchFailed) as error:
        return error, counts
      finally:
        await client.aclose()

  return asyncio.run(run())


def open_to(server, *hosts, **options):
  return web_client.WebConfig(
    allow=(server.host, *(f'{h}:{server.port}' for h in hosts)),
    **{'timeout_seconds': 5.0, 'max_attempts': 2} | options,
  )


def to_loopback(names):
  """Resolves the names of a table, and says which were asked for."""
  asked = []

  async def resolve(host, port):
    del port
    asked.append(host)
    return names[host]

  return resolve, asked


# What is reached must be nothing, whatever the URL is written like. {port} is of
# a server on the loopback that counts who comes.
_HOSTILE = (
  'http://127.0.0.1:{port}/',
  'http://localhost:{port}/',
  'http://127.1:{port}/',
  'http://2130706433:{port}/',
  'http://0x7f.0.0.1:{port}/',
  'http://0177.0.0.1:{port}/',
  'http://0:{port}/',
  'http://0.0.0.0:{port}/',
  'http://[::1]:{port}/',
  'http://[::ffff:127.0.0.1]:{port}/',
  'http://[::ffff:7f00:1]:{port}/',
  'http://[::]:{port}/',
  'http://[fe80::1%25lo]:{port}/',
  'http://localhost.:{port}/',
  'http://LOCALHOST:{port}/',
  'http://127.0.0.1/',
  'http://localhost/',
  'https://127.0.0.1/',
  'http://169.254.169.254/latest/meta-data/',
  'http://[fd00:ec2::254]/latest/meta-data/',
  'http://10.0.0.1/',
  'http://192.168.0.1/',
  'http://100.100.100.200/',
  'http://user:password@127.0.0.1:{port}/',
  'http://example.com@127.0.0.1:{port}/',
  'http://127.0.0.1:{port}#@example.com/',
  'http://127.0.0.1:{port}\\@example.com/',
  'http://\uff11\uff12\uff17.0.0.1:{port}/',
  'http://①②⑦.0.0.1:{port}/',
  'file:///etc/passwd',
  'ftp://127.0.0.1:{port}/',
  'gopher://127.0.0.1:{port}/',
  'data:text/html,hello',
  'javascript:alert(1)',
  '//127.0.0.1:{port}/',
  '127.0.0.1:{port}',
  'http:///',
  'http://',
  '',
  'http://[::1',
  'http://a b/',
  'http://127.0.0.1:99999/',
  'http://127.0.0.1:{port}/\r\nX-Header: 1',
  'http://huggingface.co/datasets/x',
  'https://a.b.huggingface.co/',
  'https://HUGGINGFACE.CO./',
  'http://\uff48uggingface.co/',
  'http://huggingface\u3002co/',
  'http://hugging\u00adface.co/',
  'http://%68uggingface.co/',
  'http://example.com:22/',
  'http://' + 'a' * 5000,
)


@pytest.mark.parametrize('url', _HOSTILE)
def test_hostile_urls_reach_nothing(url, monkeypatch):
  asked = []

  def local_only(host, *args, **kwargs):
    # No resolver is asked for what is not this machine.
    asked.append(host)
    return original(host, *args, **kwargs)

  original = socket.getaddrinfo
  monkeypatch.setattr(socket, 'getaddrinfo', local_only)
  with web_server.Server({'/': Said(b'private')}) as server:
    error, _ = fetch(url.format(port=server.port))
    assert isinstance(error, (base.BadArguments, web_client.FetchFailed)), error
    assert not server.asked
    assert not any('huggingface' in str(h).lower() for h in asked)


@pytest.mark.parametrize('status', [301, 302, 303, 307, 308])
@pytest.mark.parametrize(
  'target',
  [
    'http://127.0.0.1:{inner}/',
    '//127.0.0.1:{inner}/',
    'http://inner.example:{inner}/',
    'file:///etc/passwd',
    'http://169.254.169.254/',
    'http://huggingface.co/',
    'http://[::1]/',
  ],
)
def test_redirects_to_what_is_closed_end_there(status, target):
  with web_server.Server({'/': Said(b'private')}) as inner:
    to = target.format(inner=inner.port)
    with web_server.Server({'/': web_server.redirect(to, status)}) as outer:

      async def resolve(host, port):
        del port
        return {
          'outer.example': ['127.0.0.1'],
          '127.0.0.1': ['127.0.0.1'],
          'inner.example': ['127.0.0.1'],
          '::1': ['::1'],
          '169.254.169.254': ['169.254.169.254'],
        }[host]

      error, counts = fetch(
        f'http://outer.example:{outer.port}/', resolve, open_to(outer, 'outer.example')
      )
    assert len(outer.asked) == 1
    assert isinstance(error, web_client.Blocked)
    assert sum(v for k, v in counts.items() if k.startswith('web_blocked')) == 1
    assert not inner.asked


def test_a_host_with_one_private_address_is_not_asked():
  resolve, _ = to_loopback({'two.example': ['8.8.8.8', '127.0.0.1']})
  error, counts = fetch('http://two.example/', resolve)
  assert isinstance(error, web_client.Blocked)
  assert counts == {'web_blocked_address': 1}


def test_a_name_is_resolved_once_and_that_address_is_asked():
  # Rebinding: whoever resolved again would be sent elsewhere.
  answers = [['127.0.0.1'], ['10.0.0.1']]

  async def resolve(host, port):
    del host, port
    return answers.pop(0)

  with web_server.Server({'/': Said(b'hello')}) as server:
    response, _ = fetch(
      f'http://name.example:{server.port}/', resolve, open_to(server, 'name.example')
    )
  assert response.content == b'hello'
  assert len(answers) == 1
  assert server.asked[0].headers['host'] == f'name.example:{server.port}'


def test_the_system_resolver_is_the_default():
  with web_server.Server({'/': Said(b'hello')}) as server:
    config = web_client.WebConfig(allow=(f'localhost:{server.port}',))
    response, counts = fetch(f'http://localhost:{server.port}/', config=config)
  assert response.content == b'hello'
  assert counts == {'web_fetched': 1}


_NOWHERE = (
  'mailto:a@b.org',
  'mailto:',
  'javascript:alert(1)',
  'javascript:',
  'data:text/html,x',
  'data:',
  'file:///etc/passwd',
  'ftp://a.org/x',
  'about:blank',
  'tel:+1',
  'blob:x',
  'ws://a.org/',
  'gopher://a.org',
  'x:',
  'urn:isbn:1',
  'http:',
  'http://',
  'https://',
  'http:///x',
  'http://[',
  'http://[::1',
  'http://a.org:port/',
  'http://a.org:99999/',
  'http://user:secret@a.org/',
  'http://a.org:22/',
  '//',
  '//[',
  'http://\x7f/',
  'http://a b.org/',
  'http://xn--a/',
  'http://\xff\xfe/',
  'ht!tp://a.org',
  'http://.',
  'http://..org/',
  f'http://{"a" * 70}.org/',
  '/' + 'x' * 5000,
  'http://%00/',
  'https://%/',
  'http:/\\a.org',
  '\\\\a.org\\x',
)


@pytest.mark.parametrize('target', _NOWHERE)
def test_redirects_to_nowhere_are_text_for_the_model(target):
  said = web_server.redirect(target)
  with web_server.Server({'/': said}) as server:
    config = open_to(server)

    async def only_here(host, port):
      del port
      return ['127.0.0.1'] if host == '127.0.0.1' else []

    found, _ = fetch(server.url + '/', only_here, config)
  # What leads back to the server itself is asked, and not found.
  assert isinstance(found, (base.BadArguments, web_client.FetchFailed)), found
  assert str(found)


def test_there_are_thirty_redirects_and_more():
  assert len(_NOWHERE) >= 30


def test_redirects_are_followed_and_bounded():
  with web_server.Server(
    {
      '/': web_server.redirect('/a'),
      '/a': web_server.redirect('b?x=1'),
      '/b': Said(b'there'),
      '/loop': web_server.redirect('/loop'),
    }
  ) as server:
    response, _ = fetch(f'{server.url}/', config=open_to(server))
    assert response.content == b'there'
    assert response.url == f'{server.url}/b?x=1'
    error, _ = fetch(f'{server.url}/loop', config=open_to(server))
    assert isinstance(error, web_client.FetchFailed)
    assert 'more than 5 times' in str(error)
    assert sum(a.path == '/loop' for a in server.asked) == 6
    kept, _ = fetch(f'{server.url}/', config=open_to(server), follow=False)
    assert kept.headers['location'] == '/a'


def test_a_key_is_not_sent_to_where_a_redirect_leads():
  with web_server.Server({'/': Said(b'other')}) as other:
    with web_server.Server(
      {
        '/': web_server.redirect('/again'),
        '/again': web_server.redirect(f'{other.url}/'),
      }
    ) as server:
      config = web_client.WebConfig(allow=(server.host, other.host))
      fetch(f'{server.url}/', config=config, headers={'X-Key': 'secret'})
  assert [a.headers.get('x-key') for a in server.asked] == ['secret', 'secret']
  assert 'x-key' not in other.asked[0].headers


@pytest.mark.parametrize('status', [429, 500, 503])
def test_a_busy_host_is_asked_again(status):
  with web_server.Server({}) as server:
    said = [Said(b'', status, {'Retry-After': '0'}), Said(b'hello')]
    server.pages['/'] = lambda asked: said.pop(0)
    response, counts = fetch(f'{server.url}/', config=open_to(server))
  assert response.content == b'hello'
  assert counts == {'web_retries': 1, 'web_fetched': 1}


@pytest.mark.parametrize(
  ('said', 'match', 'requests'),
  [
    (Said(b'', 503), 'status 503', 2),
    (Said(b'', 404), 'status 404', 1),
    (Said(b'x' * 2000), 'more than 1,000 bytes', 1),
    (Said([b'x' * 600, b'x' * 600]), 'more than 1,000 bytes', 1),
    (
      Said(gzip.compress(b'x' * 10**7), 200, {'Content-Encoding': 'gzip'}),
      'more than 1,000 bytes',
      1,
    ),
    (Said(b'x', 200, {'Content-Encoding': 'br'}), 'content encoding', 1),
    (Said(b'x', 200, {'Content-Encoding': 'gzip'}), 'not unpack', 1),
    (Said(hangs=True), 'no answer', 2),
  ],
)
def test_what_fails_says_why(said, match, requests):
  with web_server.Server({'/': said}) as server:
    config = open_to(server, max_bytes=1000, timeout_seconds=0.3)
    error, _ = fetch(f'{server.url}/', config=config)
    assert isinstance(error, web_client.FetchFailed)
    assert match in str(error)
    assert len(server.asked) == requests


@pytest.mark.parametrize('pack', [gzip.compress, zlib.compress])
def test_packed_bodies(pack):
  coding = 'gzip' if pack is gzip.compress else 'deflate'
  said = Said(pack(b'x' * 900), 200, {'Content-Encoding': coding})
  with web_server.Server({'/': said}) as server:
    response, _ = fetch(f'{server.url}/', config=open_to(server, max_bytes=900))
  assert response.content == b'x' * 900


def test_what_follows_a_packed_body_is_not_read():
  packed = gzip.compress(b'hi')
  coding = {'Content-Encoding': 'gzip'}

  async def body():
    yield packed + b'x' * 10_000  # More than would be taken, were it a part.
    pytest.fail('is read on')

  async def read():
    client = web_client.WebClient(web_client.WebConfig(max_bytes=5000))
    try:
      return await client._read(httpx.Response(200, headers=coding, content=body()))
    finally:
      await client.aclose()

  assert asyncio.run(read()) == b'hi'
  with web_server.Server({}) as server:
    # Packed bytes count, too, where nothing comes of them.
    empty = zlib.compressobj(wbits=31)
    blocks = [empty.compress(b'')] + [empty.flush(zlib.Z_FULL_FLUSH)] * 2000
    server.pages['/'] = Said(blocks, 200, coding)
    error, _ = fetch(f'{server.url}/', config=open_to(server, max_bytes=5000))
    assert 'more than 5,000 bytes' in str(error)


def test_a_body_that_says_nothing_need_not_unpack():
  coding = {'Content-Encoding': 'gzip'}
  with web_server.Server(
    {
      '/': Said(b'', 302, coding | {'Location': '/a'}),
      '/a': Said(b'there'),
      '/empty': Said(b'', 200, coding),
    }
  ) as server:
    assert fetch(f'{server.url}/', config=open_to(server))[0].content == b'there'
    found, _ = fetch(f'{server.url}/empty', config=open_to(server))
    assert found.content == b''
    said = [Said(b'x', 503, {'Content-Encoding': 'br'}), Said(b'well')]
    server.pages['/busy'] = lambda asked: said.pop(0)
    found, _ = fetch(f'{server.url}/busy', config=open_to(server))
    assert found.content == b'well'


def test_no_cookie_comes_back():
  with web_server.Server(
    {'/': Said(b'x', 200, {'Set-Cookie': 'id=1; Path=/'})}
  ) as server:

    async def run():
      client = web_client.WebClient(
        open_to(server, 'a.example', 'b.example'), resolve=resolve
      )
      try:
        for host in ('a.example', 'a.example', 'b.example'):
          await client.get(f'http://{host}:{server.port}/')
      finally:
        await client.aclose()

    resolve, _ = to_loopback({h: ['127.0.0.1'] for h in ('a.example', 'b.example')})
    asyncio.run(run())
  assert len(server.asked) == 3
  assert not any('cookie' in asked.headers for asked in server.asked)


def test_an_address_that_does_not_answer_leaves_time_for_the_next(monkeypatch):
  with web_server.Server({'/': Said(b'hello')}) as server:
    send = httpx.AsyncClient.send

    async def silent(self, request, **options):
      if request.url.host == '127.0.0.9':
        await asyncio.sleep(request.extensions['timeout']['connect'])
        raise httpx.ConnectTimeout('no answer')
      return await send(self, request, **options)

    monkeypatch.setattr(httpx.AsyncClient, 'send', silent)
    resolve, _ = to_loopback({'two.example': ['127.0.0.9', '127.0.0.1']})
    response, counts = fetch(
      f'http://two.example:{server.port}/',
      resolve,
      open_to(server, 'two.example', timeout_seconds=3.0),
    )
  assert response.content == b'hello' and counts == {'web_fetched': 1}


def test_a_closed_port_and_an_unknown_host():
  with socket.socket() as free:
    free.bind(('127.0.0.1', 0))
    port = free.getsockname()[1]
  config = web_client.WebConfig(allow=(f'127.0.0.1:{port}',), max_attempts=1)
  error, _ = fetch(f'http://127.0.0.1:{port}/', config=config)
  assert 'cannot be reached' in str(error)

  async def nobody(host, port):
    raise socket.gaierror(socket.EAI_NONAME, 'no such name')

  async def no_resolver(host, port):
    raise socket.gaierror(socket.EAI_AGAIN, 'try again')

  error, _ = fetch('http://none.example/', nobody)
  assert 'there is no host none.example' in str(error) and not error.is_ours
  error, _ = fetch('http://none.example/', no_resolver)
  assert error.is_ours


def test_requests_to_one_host_are_bounded():
  at_once, most = 0, 0

  async def run(server):
    config = open_to(server, concurrency=3, requests_per_minute=0)
    client = web_client.WebClient(config)
    original = client._connected

    async def counted(*args):
      nonlocal at_once, most
      at_once += 1
      most = max(most, at_once)
      await asyncio.sleep(0.01)
      try:
        return await original(*args)
      finally:
        at_once -= 1

    client._connected = counted
    await asyncio.gather(*(client.get(f'{server.url}/') for _ in range(12)))
    await client.aclose()

  with web_server.Server({'/': Said(b'x')}) as server:
    asyncio.run(run(server))
  assert most == 3
  assert len(server.asked) == 12


def test_post_sends_json_and_follows_nothing():
  with web_server.Server(
    {'/': lambda asked: Said(asked.body), '/away': web_server.redirect('/')}
  ) as server:
    response, _ = fetch(
      f'{server.url}/', config=open_to(server), method='post', body={'a': [1]}
    )
    assert response.json() == {'a': [1]}
    response, _ = fetch(
      f'{server.url}/away', config=open_to(server), method='post', body={}
    )
    assert response.status == 302
    with pytest.raises(web_client.FetchFailed, match='no JSON'):
      response.json()


@pytest.mark.parametrize(
  ('change', 'match'),
  [
    ({'allow': ('localhost',)}, 'HOST:PORT'),
    ({'blocked': ('https://x.org',)}, 'lower case'),
    ({'max_bytes': 0}, 'positive'),
    ({'requests_per_minute': -1}, 'negative'),
    ({'contact': 'a\nb'}, 'contact'),
  ],
)
def test_configs_that_are_refused(change, match):
  with pytest.raises(ValueError, match=match):
    web_client.WebConfig(**change)
