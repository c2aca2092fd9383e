"""The pipeline's stages, one runnable file each: `python -m stages.NAME` (see dvc.yaml for their order)."""

import os

# Read when torch loads its thread pool. Waiting threads that spin make a training step 8 times slower (3.4 s for 0.4 s)
# as soon as another process wants one of the two cores; threads that sleep cost nothing measurable on idle cores.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")  # tokenizers' threads and forked processes can deadlock
os.environ.setdefault("LITELLM_LOCAL_MODEL_COST_MAP", "True")  # else DSPy's first call tries to download a price list
os.environ.setdefault("CUDA_DEVICE_ORDER", "PCI_BUS_ID")  # CUDA then counts GPUs as nvidia-smi does
