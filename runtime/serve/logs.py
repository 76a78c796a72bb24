"""Logs of a server as JSON, one object a line, for whatever collects them."""

from __future__ import annotations

import logging
import sys
from datetime import UTC, datetime

from artifacts import canonical_json


class JsonFormatter(logging.Formatter):
    """Formats a record as one line: time, level, logger, message, and the exception if there is one."""

    def format(self, record: logging.LogRecord) -> str:
        found = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        if record.exc_info:
            found["exception"] = self.formatException(record.exc_info)
        return canonical_json(found).decode()


def log_json() -> None:
    """Lets everything that is logged go to stderr as JSON."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonFormatter())
    logging.basicConfig(handlers=[handler], level=logging.root.level, force=True)
