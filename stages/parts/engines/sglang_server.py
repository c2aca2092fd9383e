"""SGLang's server with its key from the environment: it takes one on its command line only, which any user of the
machine can read.

Run by SGLang's own interpreter: it imports nothing of this project.
"""

import os
import runpy
import sys

if __name__ == "__main__":  # not in its workers, which import this file again
    sys.argv += ["--api-key", os.environ.pop("SGLANG_SERVER_KEY")]
    runpy.run_module("sglang.launch_server", run_name="__main__")
