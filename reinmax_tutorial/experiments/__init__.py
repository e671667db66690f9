"""Training runs: what they are, how they are trained, stored, collected and read.

`python -m reinmax_tutorial list` names the committed sweeps, `run SWEEP` trains one,
`status SWEEP` says what is missing, `collect SWEEP` makes its table, and `measure
SWEEP` measures every estimator at the models that a sweep has saved.
"""
