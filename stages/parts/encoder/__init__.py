"""Vectors of texts from a pretrained encoder.

encoder.py   a model by the conventions of sentence-transformers, exported to ONNX once: texts in, unit vectors out
vectors.py   data/embeddings: written by stage embed, read by whatever compares texts
student.py   the encoder student: a classification head in one graph with the encoder, and what serves it
"""
