"""Downloads the paper's training mix: Natural Questions and DeepMath-103K.

  python launch/download_data.py --dir=data [--only=nq|deepmath] [--dry_run] \
      [--base_url=https://huggingface.co] [--max_gib=8]

Leaves DIR/nq/train.jsonl and DIR/deepmath/train-0000N-of-00010.parquet. A file
that is there is not asked for again; one that was cut off (.partial) goes on
where it stopped when the same command is given. Needs a network; nothing else
here does.
"""

import argparse
import http.client
import pathlib
import sys
import urllib.error
import urllib.request

# From memory: there was no network to try them on. Should one have moved, the
# error names it, and --base_url or a download by hand is the way on.
_SHARDS = 10
_FILES = {
  'nq': {
    'nq/train.jsonl': (
      'datasets/RUC-NLPIR/FlashRAG_datasets/resolve/main/nq/train.jsonl'
    )
  },
  'deepmath': {
    f'deepmath/train-{i:05d}-of-{_SHARDS:05d}.parquet': (
      'datasets/zwhe99/DeepMath-103K/resolve/main/data/'
      f'train-{i:05d}-of-{_SHARDS:05d}.parquet'
    )
    for i in range(_SHARDS)
  },
}
_CHUNK = 1 << 20
_TOLD = 64 << 20  # Bytes from one line of progress to the next.
_SECONDS = 60  # Without a byte.


class _Failed(Exception):
  """A download that cannot go on; says why and what to do."""


def _arguments():
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawTextHelpFormatter
  )
  parser.add_argument('--dir', default='data')
  parser.add_argument('--only', choices=sorted(_FILES), default=None)
  parser.add_argument('--base_url', default='https://huggingface.co')
  parser.add_argument('--max_gib', type=float, default=8.0, help='of one file')
  parser.add_argument('--dry_run', action='store_true')
  return parser.parse_args()


def _open(url, start):
  """Returns a response from byte `start` on, or None where that is the end."""
  request = urllib.request.Request(url)
  if start:
    request.add_header('Range', f'bytes={start}-')
  try:
    return urllib.request.urlopen(request, timeout=_SECONDS)
  except urllib.error.HTTPError as e:
    if e.code == 416 and start:
      size = e.headers.get('Content-Range', '').rpartition('/')[2]
      if size == str(start):
        return None
      raise _Failed(f'{url}: smaller than its .partial; delete that') from e
    raise _Failed(f'{url}: {e.code} {e.reason}; has it moved?') from e
  except (OSError, http.client.HTTPException) as e:
    reason = getattr(e, 'reason', e)
    raise _Failed(f'{url}: {reason}. No network? Download it where there is one') from e


def _download(url, path, limit):
  """Brings one file, from where its .partial ends.

  Args:
    url: URL of the file.
    path: path of the file once it is whole.
    limit: largest size [bytes].

  Raises:
    _Failed: no network, an error of the server, too long, or cut off.
  """
  path.parent.mkdir(parents=True, exist_ok=True)
  partial = path.with_name(f'{path.name}.partial')
  start = partial.stat().st_size if partial.exists() else 0
  response = _open(url, start)
  if response is None:
    partial.rename(path)
    return
  with response:
    if start and response.status != 206:
      start = 0  # The server knows no ranges: from the beginning.
    length = response.headers.get('Content-Length')
    size = start + int(length) if length else None
    if (size or 0) > limit:
      raise _Failed(f'{url}: {size} bytes, more than --max_gib allows')
    done = start
    with partial.open('ab' if start else 'wb') as f:
      try:
        while chunk := response.read(_CHUNK):
          done += len(chunk)
          if done > limit:
            raise _Failed(f'{url}: more bytes than --max_gib allows')
          f.write(chunk)
          if done // _TOLD > (done - len(chunk)) // _TOLD:
            of = f' of {size >> 20}' if size else ''
            print(f'  {done >> 20}{of} MiB', flush=True)
      except (OSError, http.client.HTTPException) as e:
        raise _Failed(
          f'{url}: cut off at byte {done}: {e}; the same command goes on'
        ) from e
  if size is not None and done != size:
    raise _Failed(f'{url}: cut off at byte {done} of {size}; the same command goes on')
  partial.rename(path)


def main() -> int:
  """Downloads what is not there; the exit code says whether all is."""
  args = _arguments()
  base = args.base_url.rstrip('/')
  for name, files in _FILES.items():
    if args.only not in (None, name):
      continue
    for place, remote in files.items():
      path, url = pathlib.Path(args.dir) / place, f'{base}/{remote}'
      if path.exists():
        print(f'{path}: is there')
        continue
      print(f'{path}: from {url}', flush=True)
      if args.dry_run:
        continue
      try:
        _download(url, path, args.max_gib * 2**30)
      except _Failed as e:
        print(f'error: {e}', file=sys.stderr)
        return 1
  return 0


if __name__ == '__main__':
  sys.exit(main())
