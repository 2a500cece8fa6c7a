"""Failures by another author: programs of a cluster that really fail, most of them in a job's script."""

from __future__ import annotations

import os
import socket
import threading
from pathlib import Path
from typing import Any, NoReturn

from causes.programs import closed_port, failure, python, ran, scratch, small_disk


def job(text: str, *files: tuple[str, str]) -> NoReturn:
    """Run a script of bash in a new folder that holds some files."""
    script = Path(scratch("job.sh", text.encode()))
    for name, content in files:
        (script.parent / name).write_text(content)
    ran("bash", "-c", 'cd "$1" && exec bash job.sh', "bash", str(script.parent))


def replying(reply: bytes) -> str:
    """Return the address of a server that sends some bytes to whoever asks, and closes."""
    server = socket.create_server(("127.0.0.1", 0))

    def answer() -> None:
        while True:
            client, _ = server.accept()
            client.recv(65536)
            client.sendall(reply)
            client.close()

    threading.Thread(target=answer, daemon=True).start()
    return f"http://127.0.0.1:{server.getsockname()[1]}/shard-00017.tar"


# The user's config
@failure
def target_misspelt(config: Any) -> object:
    """Name a class in the config that torch does not have."""
    python(
        "train.py",
        "import hydra.utils\n"
        "print('[2025-03-02 10:11:12,345][__main__][INFO] - Instantiating optimizer')\n"
        "hydra.utils.instantiate({'optim': {'_target_': 'torch.optim.AdamWW', 'lr': 1e-3, 'params': []}})\n",
    )


@failure
def rate_of_typer(config: Any) -> object:
    """Give an option a value that is no number."""
    python(
        "train.py",
        "import sys, typer\n"
        "def main(model: str = 'small', lr: float = 1e-4) -> None: ...\n"
        "sys.argv = ['train.py', '--model', 'base', '--lr', '1e-4x']\n"
        "typer.run(main)\n",
    )


@failure
def negative_rate(config: Any) -> object:
    """Hand a learning rate from the config to torch, which refuses it."""
    import torch

    return torch.optim.AdamW([torch.nn.Parameter(torch.zeros(2))], lr=-1e-3)


@failure
def tag_of_git(config: Any) -> object:
    """Check out a version that the repository does not have."""
    job(
        "set -euo pipefail\n"
        "git init -q code && cd code\n"
        "git -c user.name=a -c user.email=a@b commit -q --allow-empty -m first\n"
        "git checkout v2.1.0\n"
        "python train.py\n"
    )


@failure
def credentials_of_boto(config: Any) -> object:
    """Configure no credentials for a bucket."""
    import boto3  # type: ignore[import-untyped]

    for name in [name for name in os.environ if name.startswith("AWS_")]:
        del os.environ[name]
    os.environ.update(AWS_EC2_METADATA_DISABLED="true", HOME="/nonexistent")
    return boto3.client("s3", region_name="eu-west-1").download_file("corpora", "train.bin", "train.bin")


# The user's data
@failure
def picture_in_worker(config: Any) -> object:
    """Read a damaged picture in a worker of a loader."""
    python(
        "train.py",
        "from io import BytesIO\n"
        "from PIL import Image\n"
        "from torch.utils.data import DataLoader, Dataset\n"
        "class Pictures(Dataset):\n"
        "    def __len__(self): return 8\n"
        "    def __getitem__(self, index):\n"
        "        return Image.open(BytesIO(b'<html>404</html>')).convert('RGB')\n"
        "if __name__ == '__main__':\n"
        "    print('Epoch 0: lr 0.0005', flush=True)\n"
        "    for batch in DataLoader(Pictures(), batch_size=4, num_workers=1): pass\n",
    )


@failure
def pointer_for_weights(config: Any) -> object:
    """Open a pointer of Git LFS as weights: they were cloned without LFS."""
    from safetensors import safe_open

    text = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a214614ab2935c943f9e0ff69d22e\nsize 440449768\n"
    return safe_open(scratch("model.safetensors", text), "pt")


@failure
def truncated_tokenizer(config: Any) -> object:
    """Read a tokenizer whose copy was cut off."""
    from tokenizers import Tokenizer

    return Tokenizer.from_file(scratch("tokenizer.json", b'{"version": "1.0", "model": {"type": "BPE", "voc'))


@failure
def columns_of_datasets(config: Any) -> object:
    """Load two shards, of which one has a column more."""
    first = scratch("0.jsonl", b'{"text": "a"}\n' * 3)
    second = scratch("1.jsonl", b'{"text": "a", "score": 0.5}\n' * 3)
    python(
        "prepare.py",
        "import os, tempfile\n"
        "os.environ['HF_HOME'] = tempfile.mkdtemp()\n"
        "from datasets import load_dataset\n"
        f"load_dataset('json', data_files=[{first!r}, {second!r}])\n",
    )


@failure
def shard_of_zstd(config: Any) -> object:
    """Decompress a shard whose end is missing."""
    job(
        "set -euo pipefail\n"
        "head -c 400000 /dev/urandom | base64 | zstd -q > whole.zst\n"
        "head -c 100000 whole.zst > train-00003.jsonl.zst\n"
        "echo 'counting documents'\n"
        "zstd -dc train-00003.jsonl.zst | wc -l\n"
    )


@failure
def member_of_zip(config: Any) -> object:
    """Unpack an archive in which bytes changed."""
    job(
        "set -e\n"
        "head -c 4000 /dev/urandom > a.jpg; head -c 4000 /dev/urandom > b.jpg\n"
        "zip -q -0 images.zip a.jpg b.jpg && rm a.jpg b.jpg\n"
        "printf 'damage' | dd of=images.zip bs=1 seek=2000 conv=notrunc status=none\n"
        "unzip -o images.zip -d images\n"
        "python train.py --images images\n"
    )


@failure
def json_of_node(config: Any) -> object:
    """Parse a page as JSON."""
    text = "const fs = require('fs');\nconst rows = JSON.parse(fs.readFileSync('vocab.json', 'utf8'));\n"
    job("node split.js\n", ("split.js", text), ("vocab.json", "<html><body>moved</body></html>\n"))


@failure
def zip_of_java(config: Any) -> object:
    """Open a file as an archive that is none."""
    text = (
        "import java.util.zip.*;\npublic class Shards {\n  public static void main(String[] a) throws Exception {\n"
        "    try (ZipFile shards = new ZipFile(a[0])) { System.out.println(shards.size()); }\n  }\n}\n"
    )
    job("java Shards.java shards.zip\n", ("Shards.java", text), ("shards.zip", "not an archive " * 40))


# The user's code
@failure
def extension_of_make(config: Any) -> object:
    """Compile C with an undeclared name."""
    text = "#include <math.h>\ndouble scaled(double x) { return erf(x) * SCALE; }\n"
    make = "all: fast.so\nfast.so: fast.c\n\tgcc -O2 -fPIC -shared -o fast.so fast.c\n"
    job("set -e\nmake -j2\npython train.py\n", ("fast.c", text), ("Makefile", make))


@failure
def command_of_cmake(config: Any) -> object:
    """Configure a build with a misspelt command."""
    text = "cmake_minimum_required(VERSION 3.16)\nproject(sampler NONE)\nadd_exectuable(sampler sampler.c)\n"
    job("set -e\ncmake -S . -B build\ncmake --build build\n", ("CMakeLists.txt", text))


@failure
def name_of_perl(config: Any) -> object:
    """Misspell a variable in Perl."""
    text = 'use strict;\nuse warnings;\nmy $rate = 0.1;\nprint $ratte * 2, "\\n";\n'
    job("perl score.pl < /dev/null\n", ("score.pl", text))


@failure
def module_of_node(config: Any) -> object:
    """Import a file that does not exist, in JavaScript."""
    job("node crawl.mjs\n", ("crawl.mjs", 'import { read } from "./shards.js";\nread();\n'))


@failure
def symbol_of_java(config: Any) -> object:
    """Call a method that does not exist, in Java."""
    text = (
        "public class Merge {\n  public static void main(String[] a) {\n    int rows = count(a[0]);\n  }\n}\n"
    )
    job("java Merge.java x.csv\n", ("Merge.java", text))


@failure
def syntax_of_awk(config: Any) -> object:
    """Forget a parenthesis in awk."""
    job("set -euo pipefail\nseq 9 | awk '{ s += $1 } END { print s / (NR }' > mean.txt\n")


@failure
def rows_of_map(config: Any) -> object:
    """Add a number to a text in two processes of `Dataset.map`."""
    python(
        "prepare.py",
        "import os, tempfile\n"
        "os.environ['HF_HOME'] = tempfile.mkdtemp()\n"
        "from datasets import Dataset\n"
        "def longer(row): return {'text': row['text'] + row['length']}\n"
        "if __name__ == '__main__':\n"
        "    Dataset.from_dict({'text': ['a'] * 9, 'length': [1] * 9}).map(longer, num_proc=2)\n",
    )


# Memory of the host
@failure
def heap_of_node(config: Any) -> object:
    """Fill the heap of JavaScript."""
    text = "const rows = [];\nfor (;;) rows.push(new Array(1000).fill(Math.random()));\n"
    job("node --max-old-space-size=20 index.js\n", ("index.js", text))


@failure
def memory_of_perl(config: Any) -> object:
    """Fill the memory that a job may take, in Perl."""
    text = "my @rows;\npush @rows, 'x' x 50_000_000 while 1;\n"
    job("ulimit -v 400000\nperl join.pl\n", ("join.pl", text))


# The network
@failure
def port_of_psql(config: Any) -> object:
    """Ask a database server that does not run."""
    job(f"set -e\npsql -h 127.0.0.1 -p {closed_port()} -U tracker runs -c 'select 1'\n")


@failure
def cut_curl(config: Any) -> object:
    """Download from a server that closes too early."""
    reply = b"HTTP/1.1 200 OK\r\nContent-Length: 9000000\r\n\r\n" + b"x" * 20_000
    ran("curl", "-fsSL", "-o", "/dev/null", replying(reply))


@failure
def status_of_wget(config: Any) -> object:
    """Download from a server that is overloaded."""
    reply = b"HTTP/1.1 503 Service Unavailable\r\nContent-Length: 0\r\n\r\n"
    ran("wget", "-O", scratch("shard.tar", b""), replying(reply))


@failure
def port_of_scp(config: Any) -> object:
    """Copy to a machine whose SSH does not answer."""
    job(f"set -e\ntouch model.pt\nscp -o BatchMode=yes -P {closed_port()} model.pt 127.0.0.1:backup/\n")


# Storage
@failure
def disk_of_rsync(config: Any) -> object:
    """Copy onto a full disk."""
    job(
        f"set -e\nhead -c 200000 /dev/zero > step100.pt\nrsync -a --info=progress2 step100.pt {small_disk()}/\n"
    )


@failure
def disk_of_tar(config: Any) -> object:
    """Unpack onto a full disk."""
    job(f"set -e\nhead -c 200000 /dev/zero > a.bin\ntar cf a.tar a.bin\ntar xf a.tar -C {small_disk()}\n")


@failure
def disk_of_curl(config: Any) -> object:
    """Download onto a full disk."""
    job(f"set -e\nhead -c 200000 /dev/zero > a.bin\ncurl -fsSL -o {small_disk()}/a.bin file://$PWD/a.bin\n")


@failure
def disk_of_git(config: Any) -> object:
    """Clone onto a full disk."""
    job(f"set -e\ngit init -q --bare code.git\ngit clone -q file://$PWD/code.git {small_disk()}/code\n")


# Time
@failure
def limit_of_timeout(config: Any) -> object:
    """Let `timeout` end a step of a script."""
    job("set -e\necho 'evaluating 1200 prompts'\ntimeout 1 sleep 50\n")


@failure
def deadlocked_workers(config: Any) -> object:
    """Wait for a worker that waits for its parent."""
    python(
        "train.py",
        "import threading\n"
        "ready, asked = threading.Event(), threading.Event()\n"
        "threading.Thread(target=lambda: (asked.wait(), ready.set()), daemon=True).start()\n"
        "print('Epoch 3:  42%|####2     | 210/500 [01:13<01:41,  2.86it/s]', flush=True)\n"
        "ready.wait()\n",
    )


# Nobody knows
@failure
def segfault_in_script(config: Any) -> object:
    """Crash in a script, without a word on where."""
    job(
        "set -e\necho 'loading checkpoint step_12000'\n"
        "python -c 'import os, signal; os.kill(os.getpid(), signal.SIGSEGV)'\n"
    )


@failure
def target_of_make(config: Any) -> object:
    """Fail silently in a step of `make`."""
    steps = "echo 'epoch 1 loss 2.31'\nexit 4\n"
    job("make train\n", ("Makefile", "train:\n\t@bash steps.sh\n"), ("steps.sh", steps))
