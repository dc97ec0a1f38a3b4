"""Room 0: addresses on hubs → files on disk, whole and verified, nothing fetched twice.

    collect(source, out, …)     a data set → out/pictures, out/captions.csv, out/download.json
    is_source(text)             is this `hf:…` or `modelscope:…` rather than a path?
    fetch_model(name, …)        a model's name or folder → its folder
    download(wanted, …)         any addresses → files

Knows nothing about examples, tokens or models, and imports neither torch nor transformers.
"""

from lorgnette.hub.collect import Collected, Missing, collect
from lorgnette.hub.download import Downloaded, Failure, Seen, Wanted, download
from lorgnette.hub.models import Source, fetch_model
from lorgnette.hub.sources import is_source
from lorgnette.hub.trouble import SourceError

__all__ = [
    "Collected",
    "Downloaded",
    "Failure",
    "Missing",
    "Seen",
    "Source",
    "SourceError",
    "Wanted",
    "collect",
    "download",
    "fetch_model",
    "is_source",
]
