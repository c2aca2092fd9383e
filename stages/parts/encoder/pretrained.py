"""The pretrained encoder that params.yaml names: fetched and exported once, then kept in .cache/encoders."""

from pathlib import Path

from stages.parts.encoder.encoder import Encoder
from stages.parts.run.files import fingerprint, whole_folder
from stages.parts.run.params import EncoderSettings
from stages.parts.run.paths import cache
from stages.parts.weights.fetch import fetch

EXPORT_VERSION = 2  # part of the cache's key: raise it if export.py writes something else


def exported_encoder(settings: EncoderSettings) -> Path:
    """Return the folder of the encoder that params.yaml names: fetched and exported once, then from .cache/encoders."""
    folder = cache() / "encoders" / encoder_key(settings)
    if not folder.is_dir():
        from stages.parts.encoder.export import export_encoder  # torch and transformers: seconds, once a model

        print(f"exporting {settings.weights.model_id} to ONNX, {settings.precision}", flush=True)
        source = fetch(settings.weights)
        with whole_folder(folder) as draft:
            draft.mkdir(parents=True)
            export_encoder(source, draft, settings.precision, settings.prompt)
    return folder


def load_encoder(settings: EncoderSettings) -> Encoder:
    return Encoder(exported_encoder(settings))


def encoder_key(settings: EncoderSettings) -> str:
    """Return what names an exported encoder: everything that changes a vector."""
    weights = settings.weights.model_dump_json(exclude={"origin", "license"})
    return fingerprint(f"{EXPORT_VERSION} {weights} {settings.precision} {settings.prompt}")
