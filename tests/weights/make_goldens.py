"""Writes what transformers computes: goldens/logits.npz and goldens/made_by.json.

  pip install torch==2.13.0 transformers
  PYTHONPATH=. python tests/weights/make_goldens.py

The tests read the goldens and need neither package.
"""

import json
import pathlib
import sys
import tempfile

import numpy as np
import torch
import transformers

from tests.weights import recipe

_HERE = pathlib.Path(__file__).parent / 'goldens'


def main() -> None:
  logits = {}
  for name, config in recipe.MODELS.items():
    with tempfile.TemporaryDirectory() as directory:
      path = pathlib.Path(directory) / 'config.json'
      path.write_text(json.dumps(config))
      read = transformers.AutoConfig.from_pretrained(directory)
    net = (
      transformers.AutoModelForCausalLM.from_config(read, attn_implementation='eager')
      .float()
      .eval()
    )
    state = {
      k: torch.from_numpy(recipe.tensor(k, tuple(v.shape)))
      for k, v in net.state_dict().items()
      if not (k == 'lm_head.weight' and config['tie_word_embeddings'])
    }
    wanted = recipe.shapes(config)
    found = {k: tuple(v.shape) for k, v in state.items()}
    assert found == wanted, set(found.items()) ^ set(wanted.items())
    net.load_state_dict(state, strict=False)
    net.tie_weights()
    with torch.no_grad():
      every = net(torch.from_numpy(recipe.TOKEN_IDS)).logits.numpy()
    logits[name] = every[:, recipe.KEPT]
  np.savez_compressed(_HERE / 'logits.npz', **logits)
  (_HERE / 'made_by.json').write_text(
    json.dumps(
      {
        'python': sys.version.split()[0],
        'torch': torch.__version__,
        'transformers': transformers.__version__,
      },
      indent=1,
    )
    + '\n'
  )


if __name__ == '__main__':
  main()
