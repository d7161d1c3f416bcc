"""temporary"""
from __future__ import annotations
from typing import Any
def wants_notify(ready: Any) -> bool: return False
def wait_ready(container: Any, ready: Any, timeout: float) -> None: ...
