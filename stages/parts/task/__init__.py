"""The task, once for training, evaluation and serving: labels, prompt, program, and what an answer means."""
