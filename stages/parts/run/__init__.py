"""What every stage does, and nothing that changes a result: no stage depends on this room in dvc.yaml.

params      params.yaml, typed and checked
paths       where every file is
files       whole writes, JSON, hashes, fingerprints
stage       how a stage runs: its time and memory, the trackers
commands    how a command ends: errors in one line, Ctrl-C, SIGTERM
errors      the error that a user can mend
machine     ports, GPUs, child processes
progress    a bar on a terminal, lines in a log
answer_store  paid answers in SQLite: nothing is lost when a run is killed
traces      a sample of DSPy's calls for MLflow
pages       templates filled in, and the pages' style
provenance  commit, package versions, dates
"""
