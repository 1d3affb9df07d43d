"""The functions of this module are made at import, where a type checker cannot see them."""

from typing import Any

def __getattr__(name: str) -> Any: ...
