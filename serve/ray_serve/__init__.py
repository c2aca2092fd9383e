"""The service on Ray Serve.

__main__  `make serve-ray`
apps      two applications, each scaled on its own: the LLM endpoint and the classifier
"""
