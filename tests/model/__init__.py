"""Random calls on real processes, and a model in plain Python that says how each may end."""
