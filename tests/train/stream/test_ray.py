"""A corpus built by a Ray cluster of two nodes on this machine."""

from pathlib import Path

import pytest

from headwater.train.corpus.build import build_corpus

from .conftest import settings_for
from .test_build import content

ray = pytest.importorskip("ray", reason="needs Ray (extra: ray)")


@pytest.mark.slow
def test_two_nodes_build_what_one_process_builds(built, tmp_path, monkeypatch):
    from ray.cluster_utils import Cluster

    # CPUs are a label here: the nodes are processes of one machine.
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1})
    try:
        cluster.add_node(num_cpus=1)
        cluster.wait_for_nodes()
        assert len(cluster.list_all_nodes()) == 2
        monkeypatch.setenv("RAY_ADDRESS", cluster.address)
        cfg = settings_for(tmp_path / "run", Path(built.corpus.sources[0].path))
        cfg.corpus.engine, cfg.corpus.workers = "ray", 2
        build_corpus(cfg)
    finally:
        cluster.shutdown()
    assert content(cfg.out) == content(built.out)
