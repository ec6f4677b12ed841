"""The embedded warehouse: chDB, ClickHouse's engine in a wheel, behind ClickHouse's HTTP interface.

One process holds the data folder and serves it, so that any ClickHouse client works unchanged.

| module | what is in it |
|---|---|
| `server` | the process: lock, socket, signals |
| `app`, `response` | from a request to its answer |
| `request`, `multipart`, `sessions` | reading requests; connections that clients keep |
| `lexer`, `sql` | the little grammar that serving needs |
| `execution` | one query in its thread |
| `engine` | chDB: configuration, connections, pipes |
| `encodings`, `formats`, `errors` | compression, content types, exceptions and their statuses |
| `lock` | one process a folder |
"""

from apex_pipelines.platform.warehouse.lock import WarehouseLocked
from apex_pipelines.platform.warehouse.server import PortInUse, serve

__all__ = ["PortInUse", "WarehouseLocked", "serve"]
