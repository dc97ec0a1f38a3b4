"""Room 0: addresses on hubs → files on disk, whole and verified, nothing fetched twice.

    collect.collect(source, out, …)     a data set → out/pictures, out/captions.csv, out/download.json
    address.is_source(text)             is this `hf:…` or `modelscope:…` rather than a path?
    models.fetch_model(name, …)         a model's name or folder → its folder
    download.download(wanted, …)        any addresses → files

Knows nothing about examples, tokens or models, and imports neither torch nor transformers. Nothing is imported with
the room itself: a run whose files are all here needs none of what speaks to a hub.
"""
