"""One process of several that attend to one sequence together; `test_cluster.py` starts, kills and reads them.

Arguments: port of the coordinator, number of processes, number of this one, seconds of the heartbeat time-out, file to write
(or "-" to work until killed, printing a line for each step).
"""

from __future__ import annotations

import sys
from typing import Any

import numpy as np

PART, DIM, WIDTH, COUNT = 3, 4, 2, 8


def arrays(processes: int) -> tuple[Any, Any, Any]:
    """The whole sequence: keys whose norm is thirtyfold on the second process."""
    rng = np.random.default_rng(0)
    q, k, v = (rng.standard_normal((2, processes * PART, n), dtype=np.float32) for n in (DIM, DIM, WIDTH))
    k[:, PART : 2 * PART] *= 30
    return q, k, v


def drawn() -> Any:
    import rfkernels as rfk

    return rfk.draw("positive", DIM, COUNT, rng=0)


def main(port: str, processes: int, number: int, heartbeat: int, target: str) -> None:
    import jax
    import jax.numpy as jnp
    from jax.sharding import NamedSharding, PartitionSpec

    from rfkernels.integrations.sharding import sharded_attention

    address = f"127.0.0.1:{port}"
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    jax.distributed.initialize(
        address,
        processes,
        number,
        initialization_timeout=60,
        heartbeat_timeout_seconds=heartbeat,
        coordinator_bind_address=address if number == 0 else None,
    )
    assert jax.process_count() == len(jax.devices()) == processes
    mesh = jax.sharding.Mesh(np.array(jax.devices()), ("sequence",))
    spread = NamedSharding(mesh, PartitionSpec(None, "sequence"))
    part = slice(number * PART, (number + 1) * PART)
    local = [np.ascontiguousarray(x[:, part]) for x in arrays(processes)]
    q, k, v = (jax.make_array_from_process_local_data(spread, x) for x in local)
    features = drawn()

    def loss(q: Any, k: Any, v: Any) -> Any:
        out = sharded_attention(q, k, v, features, mesh=mesh, axis_name="sequence", causal=True)
        return jnp.sum(jnp.square(out)), out

    step = jax.jit(jax.value_and_grad(loss, (0, 1, 2), has_aux=True))
    (value, out), gradients = step(q, k, v)
    if target == "-":
        for i in range(1_000_000):
            jax.block_until_ready(step(q, k, v))
            print(i, flush=True)
        return
    own = [np.asarray(x.addressable_data(0)) for x in (out, *gradients)]
    np.savez(target, value=np.asarray(value), out=own[0], q=own[1], k=own[2], v=own[3])


if __name__ == "__main__":
    main(sys.argv[1], *map(int, sys.argv[2:5]), sys.argv[5])
