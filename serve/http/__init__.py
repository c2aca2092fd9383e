"""The service over HTTP.

app       the routes
routes    routes that read headers first, and a short way past FastAPI's
chat      the program behind OpenAI's chat protocol
failures  the response to each failure
guard     bodies that are too large or too slow, clients that hang up, counts
keys      API keys
server    limits on connections and headers, an end in good order
"""
