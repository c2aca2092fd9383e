"""Vectors of texts from a pretrained encoder.

encoder.py   an exported encoder: texts in, unit vectors out
pretrained.py   the one that params.yaml names: fetched and exported once
export.py    a model by the conventions of sentence-transformers as ONNX
vectors.py   data/embeddings: written by stage embed, read by whatever compares texts
student.py   the encoder student: a classification head in one graph with the encoder, and what serves it
whole.py     the encoder trained with its head
"""
