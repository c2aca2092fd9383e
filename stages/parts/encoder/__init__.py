"""Vectors of texts from a pretrained encoder.

encoder.py   an exported encoder: texts in, unit vectors out
pretrained.py   the one that params.yaml names: fetched and exported once
export.py    a model by the conventions of sentence-transformers as ONNX
vectors.py   data/embeddings: written by stage embed, read by whatever compares texts
head.py      the encoder student's head: a softmax regression
familiarity.py   which texts the student knows
student.py   the encoder student: encoder, head and known texts in one graph, and what serves it
whole.py     the encoder trained with its head
"""
