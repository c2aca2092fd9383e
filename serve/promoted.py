"""Swaps the student while the service runs, if another one is promoted (stages/parts/students/promotion.py).

models/promoted is looked at every second, since a volume of a container sends no event and gets no signal.
"""

import asyncio
import ctypes
import logging
from contextlib import suppress
from pathlib import Path

from serve.backend import TRIAL
from serve.service import Service
from stages.parts.run import paths
from stages.parts.run.errors import UserError
from stages.parts.run.params import Params
from stages.parts.students.local import LocalClassifier, load_local, served_folder
from stages.parts.students.prediction import QueryClassifier
from stages.parts.students.promoted import promoted_folder

logger = logging.getLogger("serve")
LOOK_EVERY_S = 1.0


def return_memory() -> None:
    """Give the memory of a student that is gone back to the system: glibc keeps it, some 30 MB a swap."""
    with suppress(OSError, AttributeError):  # another C library
        ctypes.CDLL("libc.so.6").malloc_trim(0)


def promoted_of(classifier: QueryClassifier) -> Path | None:
    """Return the folder of a promoted student, None for any other."""
    folder = classifier.folder if isinstance(classifier, LocalClassifier) else None
    return folder if folder and folder.parent == paths.PROMOTED else None


async def follow_promotions(service: Service, params: Params) -> None:
    """Serve what is promoted, until cancelled. A student that can't be loaded or predicts nothing changes nothing."""
    refused = ""
    while True:
        await asyncio.sleep(LOOK_EVERY_S)
        try:
            if promoted_folder() == promoted_of(service.classifier):
                refused = ""
                continue
            folder = served_folder(params)
            if not folder or not isinstance(service.classifier, LocalClassifier):
                raise UserError("start the service again: one with an engine does not swap")
            await swap(service, await asyncio.to_thread(load_local, folder))
            logger.info("the student is now %s", service.classifier.model)
            await asyncio.sleep(LOOK_EVERY_S)  # queries in flight end with the student before
            await asyncio.to_thread(return_memory)
        except Exception as error:  # whatever it is: the student that is there goes on
            if str(error) != refused:
                logger.error("another student is promoted, but %s stays: %s", service.classifier.model, error)
                refused = str(error)


async def swap(service: Service, local: LocalClassifier) -> None:
    """Let a student answer a query, then all queries from now on."""
    await local.predict(TRIAL)
    if not service.traffic:
        service.swap(local)
        return
    from serve.traffic import standards_of  # imported already: there is traffic

    standards = await asyncio.to_thread(standards_of, local, service.traffic.settings)
    service.swap(local)
    service.traffic.swap(standards)
