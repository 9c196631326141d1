"""An environment of one's own: a class whose public methods are tools.

It is named by a flag, without a change to the package, and rows of a task file begin
its episodes ({"query": "Pay the coffee.", "price": 35, "coins": [20, 10, 5, 5]}):

  python -m agentflow_jax.evaluate --config=experiments/local_model.py \\
      --workdir=runs/till \\
      --config.agent.environment.kind=experiments/own_environment.py:Till \\
      --config.task_set.kind=jsonl --config.task_set.reward=environment \\
      --config.task_set.evaluation=till.jsonl ...
"""


class Till:
  """A till that takes coins, and gives no change."""

  def reset(self, price: int, coins: list) -> str:
    """Begins an episode; the text stands in every prompt."""
    self.price, self.coins, self.paid = price, sorted(coins), 0
    self.done = False
    return f'The price is {price}. Your coins are {self.coins}. There is no change.'

  def pay(self, coin: int) -> str:
    """Puts one of your coins into the till.

    Args:
      coin: value of the coin.
    """
    if coin not in self.coins:
      raise ValueError(f'you have no coin of {coin}')  # Text for the model.
    self.coins.remove(coin)
    self.paid += coin
    return f'paid {self.paid} of {self.price}'

  def leave(self) -> str:
    """Ends the visit."""
    self.done = True
    return 'goodbye'

  def verify(self) -> dict[str, bool]:
    """Says how the episode ended: each entry is a check."""
    return {
      'paid in full': self.paid >= self.price,
      'left': bool(self.done),
      'not a coin too many': self.paid - self.price < 5,
    }
