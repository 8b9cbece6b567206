"""Who the workers are, whether they come, and who is gone: without TensorFlow."""

import json
import re
import socket
import threading
import time

import pytest
from workers import addresses

from kopt import distribution
from kopt.distribution.cluster import Cluster, find
from kopt.distribution.peers import Watch, WorkerLostError, meet

TWO = ["10.0.0.1:2222", "10.0.0.2:2222"]


def config(index=0, kind="worker", **jobs):
    return {"TF_CONFIG": json.dumps({"cluster": jobs or {"worker": TWO}, "task": {"type": kind, "index": index}})}


def test_the_cluster_of_tensorflow():
    assert find(environment=config(1)) == Cluster(tuple(TWO), 1)
    assert find(TWO, 0, config(1)) == Cluster(tuple(TWO), 0)  # what is given counts
    chief = {"chief": ["a:1"], "worker": ["b:1", "c:1"]}
    assert find(environment=config(0, "chief", **chief)).index == 0
    assert find(environment=config(1, **chief)) == Cluster(("a:1", "b:1", "c:1"), 2)
    assert find(["[::1]:5", "b:6"], 1).name(0) == "worker 0 ([::1]:5)"


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({}, "set TF_CONFIG, or give"),
        ({"environment": {"TF_CONFIG": "{"}}, "TF_CONFIG: expected .* Received: {"),
        ({"environment": config(0, ps=["a:1"], worker=TWO)}, "parameter servers .* MultiWorkerMirroredStrategy"),
        ({"environment": config(0, "evaluator", worker=TWO)}, "expected a task of type .* Received: 'evaluator'"),
        ({"workers": TWO}, "workers and index together"),
        ({"workers": TWO, "index": 2}, "from 0 to 1 here. Received: 2"),
        ({"workers": TWO, "index": -1}, "from 0 to 1 here. Received: -1"),
        ({"workers": [], "index": 0}, "an address of its own. Received: none"),
        ({"workers": ["a:1", "a:1"], "index": 0}, "an address of its own. Received: a:1, a:1"),
        *(
            ({"workers": [a], "index": 0}, f'"host:port".* Received: {a!r}')
            for a in ("a", "a:", ":1", "a:0", "a:70000")
        ),
    ],
)
def test_wrong_clusters(given, message):
    with pytest.raises(ValueError, match=message):
        find(**{"environment": {}} | given)


def test_strategies_that_there_are_not():
    with pytest.raises(ValueError, match=r'parameter servers.*strategy."multiworker".*--distribute multiworker'):
        distribution.strategy("parameter_server")
    with pytest.raises(ValueError, match=r"No strategy 'tpu'\. Use \"mirrored\" or \"multiworker\""):
        distribution.strategy("tpu")
    with pytest.raises(ValueError, match="workers and index are for"):
        distribution.strategy("mirrored", index=0)
    with pytest.raises(ValueError, match=r"timeout: seconds > 0\. Received: 0"):
        distribution.strategy("multiworker", workers=TWO, index=0, timeout=0)


def test_workers_meet():
    places = tuple(addresses(3))
    done, servers = [], []

    def begin(i):
        done.append(meet(Cluster(places, i), 10))
        servers.append(socket.create_server(("127.0.0.1", int(places[i].rpartition(":")[2]))))  # as TensorFlow does

    threads = [threading.Thread(target=begin, args=[i], daemon=True) for i in range(3)]
    for thread in threads:
        thread.start()
        time.sleep(0.05)
    for thread in threads:
        thread.join(10)
    assert done == [None] * 3
    for server in servers:
        server.close()


def test_a_worker_that_never_comes_is_named():
    places = tuple(addresses(2))
    with pytest.raises(WorkerLostError, match=re.escape(f"worker 1 ({places[1]}) has not come within 0.2 s")):
        meet(Cluster(places, 0), 0.2)
    with pytest.raises(WorkerLostError, match=re.escape(f"worker 0 ({places[0]}) has not come within 0.2 s")):
        meet(Cluster(places, 1), 0.2)  # the own port is free again


def test_a_port_that_is_taken():
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        own = f"127.0.0.1:{other.getsockname()[1]}"
        with pytest.raises(ValueError, match=rf"worker 0 .{own}.: this process cannot listen there .* another port"):
            meet(Cluster((own, "127.0.0.1:9"), 0), 1)


def test_workers_with_other_addresses():
    first, second, third = addresses(3)

    def wait_in_vain():
        with pytest.raises(WorkerLostError):
            meet(Cluster((first, third), 0), 1)

    threading.Thread(target=wait_in_vain).start()
    with pytest.raises(ValueError, match=f"worker 0 .* was started as worker 0 of {first}, {third}. .*same addresses"):
        meet(Cluster((first, second), 1), 5)


def test_who_is_gone():
    one, two, three = (socket.create_server(("127.0.0.1", 0)) for _ in range(3))
    places = tuple(f"127.0.0.1:{s.getsockname()[1]}" for s in (one, two, three))
    ended = threading.Event()
    watch = Watch(Cluster(places, 0), patience=0.2, grace=0.1, leave=lambda code: ended.set() if code == 5 else None)
    watch.start()
    time.sleep(0.6)
    assert not watch.message
    two.close()
    with pytest.raises(WorkerLostError, match=re.escape(f"worker 1 ({places[1]}) is gone")):
        watch.check()
    assert ended.wait(5)
    one.close(), three.close()


def test_one_that_parts_ends_nobody():
    other = socket.create_server(("127.0.0.1", 0))
    places = ("127.0.0.1:9", f"127.0.0.1:{other.getsockname()[1]}")
    watch = Watch(Cluster(places, 0), patience=0.1, grace=0, leave=lambda code: pytest.fail("it ended"))
    watch.start()
    watch.end()
    other.close()
    watch.join(5)
    assert not watch.is_alive() and not watch.message
