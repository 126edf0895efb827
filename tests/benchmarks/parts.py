"""Parts of benchmarks/gpu.py that go wrong."""

import os
import subprocess
import sys
import time


def well(job):
    job.say("all is well", answer=42)


def raises(job):
    job.attempt("piece", lambda: 1 / 0)
    raise RuntimeError("a part that raises")


def dies(job):
    os.abort()


def hangs(job):
    job.say("said before it hung")
    sleeper = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(9000)"])
    (job.out / "sleeper").write_text(str(sleeper.pid))
    time.sleep(9000)


def talks(job):
    for i in range(100):
        job.say(f"line {i}")
