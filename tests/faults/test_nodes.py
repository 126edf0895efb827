"""Two torchrun agents, as on two machines, train one run; a resume may change the number of ranks."""

import os
import shutil
import subprocess
import sys

import pytest

from benchmarks.soak import ROOT, Run, different
from tests.faults.runs import FLAGS, PATIENCE, RUN, ForkedRun

NODES = ("10.213.77.1", "10.213.77.2")
PORT = 29400  # of the first one's own network, where nobody else takes it


@pytest.fixture
def network_namespaces():
    """Per node the command prefix that enters its own network namespace, and its interface; a veth pair joins them."""
    names = [f"splatgan-{os.getpid()}-{i}" for i in range(2)]
    links = [f"sg{os.getpid() % 100000}{i}" for i in "ab"]
    steps = [["ip", "netns", "add", name] for name in names]
    steps += [["ip", "link", "add", links[0], "netns", names[0], "type", "veth",
               "peer", "name", links[1], "netns", names[1]]]  # fmt: skip
    for name, link, address in zip(names, links, NODES, strict=True):
        inside = ["ip", "-n", name]
        steps += [[*inside, "addr", "add", f"{address}/24", "dev", link]]
        steps += [[*inside, "link", "set", device, "up"] for device in ("lo", link)]
    try:
        if not shutil.which("ip"):
            pytest.skip("no `ip` command")
        for step in steps:
            made = subprocess.run(step, capture_output=True, text=True)
            if made.returncode:
                pytest.skip(f"no network namespaces here: {made.stderr.strip()}")
        yield [(["ip", "netns", "exec", name], link) for name, link in zip(names, links, strict=True)]
    finally:
        for name in names:
            if shutil.which("ip"):
                subprocess.run(["ip", "netns", "delete", name], capture_output=True)


def train_on_two_nodes(run, prefixes, address):
    """Two agents with one rank each; both must end well."""
    agents = []
    for rank, (prefix, interface) in enumerate(prefixes):
        command = [
            *(*prefix, sys.executable, "-m", "torch.distributed.run", "--nnodes=2", f"--node-rank={rank}"),
            *("--nproc-per-node=1", f"--master-addr={address}", f"--master-port={PORT}", str(ROOT / "train.py")),
            *run.arguments(),
        ]
        env = os.environ | {"GLOO_SOCKET_IFNAME": interface, "OMP_NUM_THREADS": "1"}
        agents.append(subprocess.Popen(command, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True))
    try:
        said = [agent.communicate(timeout=PATIENCE)[0] for agent in agents]
    finally:
        for agent in agents:
            agent.kill()
    assert [agent.returncode for agent in agents] == [0, 0], "\n".join(text[-3000:] for text in said)


def test_two_nodes_train_as_one_machine(data, two_ranks, network_namespaces, tmp_path):
    run = Run(data, tmp_path / "nodes", **RUN, flags=FLAGS)
    train_on_two_nodes(run, network_namespaces, NODES[0])
    assert different(two_ranks.end(), run.end()) == []


def test_a_resume_may_change_the_number_of_ranks(two_ranks, tmp_path):
    """2 ranks, then 1: announced, and from the same images on."""
    shutil.copytree(two_ranks.outdir, tmp_path / "runs")
    alone = ForkedRun(two_ranks.data, tmp_path / "runs", **RUN | {"kimg": 0.2}, flags=(*FLAGS, "--resume=latest"))
    alone.finish()
    log = (alone.folder() / "log.txt").read_text()
    assert "Changed     ranks: 2 -> 1" in log and "at 0.160 kimg, step 20" in log
    assert alone.end()["state"]["progress"]["nimg"] == 200
