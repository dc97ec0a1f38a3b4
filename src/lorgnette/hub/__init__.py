"""Addresses on hubs → files on disk, complete and verified, nothing fetched twice.

    address.is_hub_address(text)    is this `hf:…` or `modelscope:…` rather than a path?
    models.fetch_model(name, …)     a model's name → its folder
    datasets.open_dataset(…)        a data set's address → the data files of one split
    download.download_files(…)      URLs → files
    remote_file.RemoteFile          a file on a server as a Python file object

`data.formats` reads the data files and `data.hub_dataset` downloads a data set with its images. Knows nothing about
examples, tokens or models, and imports neither torch nor transformers. Nothing is imported with the package itself, so
that a run whose files are all on disk imports no HTTP client.
"""
