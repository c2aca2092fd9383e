"""The task, once for training, evaluation and serving.

labels.py               how label names are written, and which one an answer names
text.py                 a query's text as models see it
prompt.py               signature, prompt formats, the form that answers are held to
program.py              the DSPy program, what it runs in, what it learns from
program_file.py         a program on the disk, with the sidecar that says what it belongs to
student_file.py         student.json of the students that run in the process
readings.py             what they read from texts
label_probabilities.py  log-probabilities of tokens as probabilities of labels
terms.py                the terms that linear models count
features.py             texts as vectors, and the nearest demonstrations
"""
