"""The composition root: the only place that imports both sides."""
