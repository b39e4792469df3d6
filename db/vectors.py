"""Vectors on the wire: float32 arrays as PostgreSQL's real[], in binary."""

from typing import Any

import numpy as np
from numpy.typing import NDArray
from psycopg import AsyncConnection, postgres
from psycopg.adapt import Dumper
from psycopg.pq import Format

Vector = NDArray[np.float32]

_REAL = postgres.types["float4"]
# ndim, has nulls, element type, length, lower bound: the head of a one-dimensional array, see array_send in PostgreSQL.
_HEAD = np.dtype([("ndim", ">i4"), ("nulls", ">i4"), ("oid", ">u4"), ("length", ">i4"), ("lower", ">i4")])
_ELEMENT = np.dtype([("size", ">i4"), ("value", ">f4")])


class VectorDumper(Dumper):
    """Dumps an array of float32, flattened, hundreds of vectors in one go."""

    format = Format.BINARY
    oid = _REAL.array_oid

    def dump(self, obj: Vector) -> bytes:
        """The binary form of real[]."""
        flat = obj.ravel()
        head = np.array((1, 0, _REAL.oid, flat.size, 1), dtype=_HEAD)
        elements = np.empty(flat.size, dtype=_ELEMENT)
        elements["size"] = 4
        elements["value"] = flat
        return head.tobytes() + elements.tobytes()


def register_vectors(connection: AsyncConnection[Any]) -> None:
    """Teach a connection to send numpy arrays."""
    connection.adapters.register_dumper(np.ndarray, VectorDumper)
