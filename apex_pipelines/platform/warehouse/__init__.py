"""The embedded warehouse: chDB, ClickHouse's engine in a wheel, behind ClickHouse's HTTP interface.

One process holds the data folder and serves it, so that any ClickHouse client works unchanged.

| module | what is in it |
|---|---|
| `server`, `http1` | the process: lock, socket, threads, signals; HTTP/1.1 on a socket |
| `app`, `response` | from a request to its answer |
| `request`, `multipart`, `sessions` | reading requests; connections that clients keep |
| `access` | users, and what the read-only one must not name |
| `lexer`, `sql` | the little grammar that serving needs |
| `execution` | one query on its connection |
| `engine`, `configuration`, `query_log` | chDB: connections, pipes; what it is told; its log |
| `native`, `native_layout` | blocks in the form of a client's protocol revision |
| `encodings`, `blocks`, `formats`, `errors` | compression, content types, exceptions and their statuses |
| `lock` | one process a folder |
"""

from apex_pipelines.platform.warehouse.lock import WarehouseLocked
from apex_pipelines.platform.warehouse.server import PortInUse, serve

__all__ = ["PortInUse", "WarehouseLocked", "serve"]
