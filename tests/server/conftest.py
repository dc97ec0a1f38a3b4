"""The servers of served_app.py."""

from served_app import adapter_folders, built_in_processor, fake_server, module_fake_server, real_server

__all__ = ["adapter_folders", "built_in_processor", "fake_server", "module_fake_server", "real_server"]
