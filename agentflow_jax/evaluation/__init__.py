"""One evaluation of an agent, and the commands evaluate and solve."""
