"""What starts workers elsewhere: manifests for Kubernetes, a SkyPilot task, a PBS script, plain commands.

They are starting points, to be completed for the site. The formats: `batch/v1` of Kubernetes 1.29 or
newer, with a pod failure policy; Kueue's label of the queue; SkyPilot's task YAML; directives of PBS
Professional.
"""

from __future__ import annotations

import math
import os
import re
import shlex
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import yaml  # type: ignore[import-untyped]

from orchestrator.api.working import MARGIN_S, Work
from orchestrator.errors import UserError
from orchestrator.jobs.records import NO_MEMORY, RELEASED, TOO_SHORT
from orchestrator.provenance import without_secrets

SECRET = "polysweep-store"
"""Default name of the Kubernetes Secret whose keys are variables such as ``AWS_ACCESS_KEY_ID``."""

PLAIN = ("AWS_ENDPOINT_URL", "AWS_REGION", "AWS_DEFAULT_REGION", "AWS_ALLOW_HTTP")
"""Variables that lead to a bucket and are no credentials; they are copied where they are set here."""

SECRETS = ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY")

RETRIES = 6
"""How often a failed worker is started again; an end that asks for that, or a disruption, does not count."""

CACHE = "/var/cache/polysweep"


class TemplateOptions(NamedTuple):
    """What a user asks of a template.

    Attributes:
        kind: a key of `KINDS`.
        words: the command of one worker.
        number: of workers.
        gpus: of each worker.
        hours: limit on its wall time; None for none.
        image: for containers, "" for none.
        queue: of Kueue or PBS, "" for none.
        secret: name of the Secret with the credentials, "" for the default.
    """

    kind: str
    words: tuple[str, ...]
    number: int
    gpus: int = 0
    hours: float | None = None
    image: str = ""
    queue: str = ""
    secret: str = ""


def rendered(work: Work, wanted: TemplateOptions) -> str:
    """Return the text of a template.

    Raises:
        UserError: workers there would not see the store, or an option is missing or has no meaning for it.
    """
    render, options = _KINDS[wanted.kind]
    for name in ("image", "queue", "secret"):
        if getattr(wanted, name) and name not in options:
            raise UserError(f"--{name} means nothing for --as {wanted.kind}")
    return render(work, wanted)


def _refuse_folder(work: Work, kind: str) -> None:
    """Raise if the store is a folder, which machines of a cloud do not mount."""
    if (folder := work.view.ledger.objects.shared_folder("")) is not None:
        raise UserError(
            f"workers of --as {kind} would not see the folder {folder}",
            where="their containers and machines mount no folder of this one",
            allowed="a store in a bucket",
            fix=f"sweep launch {work.view.sweep.name} launcher=external --store s3://BUCKET/PREFIX",
        )


def _name(work: Work) -> str:
    """Return a name of letters, digits and dashes that begins with a letter, at most 40 characters long."""
    plain = re.sub(r"[^a-z0-9]+", "-", f"sweep-{work.view.sweep.name}-{work.view.number}".lower())
    return plain[:40].strip("-")


def _variables() -> dict[str, str]:
    """Return the variables of this process that lead to a bucket, without those that hold a credential."""
    found = {name: os.environ[name] for name in PLAIN if os.environ.get(name)}
    return {name: value for name, value in found.items() if without_secrets(value) == value}


def _grace_s(work: Work) -> int:
    """Return the seconds that a stopped worker needs at most."""
    return math.ceil(work.settings.policy.grace_s + 2 * MARGIN_S)


def _kubernetes(work: Work, wanted: TemplateOptions) -> str:
    _refuse_folder(work, wanted.kind)
    if not wanted.image:
        raise UserError(
            f"--as {wanted.kind} needs an image",
            allowed="one with Python, `pip install 'polysweep[s3]'` and what the stages import",
            fix="--image REGISTRY/NAME:TAG",
        )
    if wanted.kind == "kueue" and not wanted.queue:
        raise UserError("--as kueue needs a local queue", fix="--queue NAME")
    secret = {"name": wanted.secret or SECRET, "optional": not wanted.secret}
    container: dict[str, Any] = {
        "name": "worker",
        "image": wanted.image,
        "command": [*wanted.words],
        "env": [
            {"name": name, "value": value} for name, value in {**_variables(), "SWEEP_CACHE": CACHE}.items()
        ],
        "envFrom": [{"secretRef": secret}],
        "volumeMounts": [{"name": "cache", "mountPath": CACHE}],
    }
    if wanted.gpus:
        container["resources"] = {"limits": {"nvidia.com/gpu": wanted.gpus}}
    labels = {"app.kubernetes.io/name": "polysweep", "app.kubernetes.io/instance": _name(work)}
    pod = {
        "restartPolicy": "Never",
        "terminationGracePeriodSeconds": _grace_s(work),
        "containers": [container],
        "volumes": [{"name": "cache", "emptyDir": {}}],
    }
    queue = {"kueue.x-k8s.io/queue-name": wanted.queue} if wanted.queue else {}
    spec: dict[str, Any] = {
        "completionMode": "Indexed",
        "completions": wanted.number,
        "parallelism": wanted.number,
        "backoffLimitPerIndex": RETRIES,
        "podFailurePolicy": {"rules": _failure_rules()},
        "template": {"metadata": {"labels": labels}, "spec": pod},
    }
    if queue:
        spec["suspend"] = True  # Kueue starts it when there is room
    job = {
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": {"name": _name(work), "labels": {**labels, **queue}},
        "spec": spec,
    }
    head = (
        f"# {wanted.number} workers of {work.reference}. kubectl create -f FILE\n"
        f"# The bucket's credentials come from a Secret, which is made once, or from the pod's identity:\n"
        f"#   kubectl create secret generic {secret['name']} "
        + " ".join(f"--from-literal={name}=..." for name in SECRETS)
        + "\n"
    )
    return head + _yaml(job)


def _failure_rules() -> list[dict[str, Any]]:
    """Return what Kubernetes does after the exit codes of ``sweep work``."""

    def on(action: str, *codes: int) -> dict[str, Any]:
        return {
            "action": action,
            "onExitCodes": {"containerName": "worker", "operator": "In", "values": [*codes]},
        }

    return [
        on("FailJob", 2),  # wrong use: every other worker would end alike
        on("FailIndex", TOO_SHORT, NO_MEMORY),  # the same pod would get no further
        on("Ignore", RELEASED),
        {"action": "Ignore", "onPodConditions": [{"type": "DisruptionTarget", "status": "True"}]},
    ]


def _skypilot(work: Work, wanted: TemplateOptions) -> str:
    _refuse_folder(work, wanted.kind)
    resources: dict[str, Any] = {
        "job_recovery": {"max_restarts_on_errors": RETRIES, "recover_on_exit_codes": [RELEASED]}
    }
    if wanted.gpus:
        settings = work.settings
        device = settings.launcher.get("device") or settings.cluster.get("device") or settings.hardware.device
        resources["accelerators"] = f"{device.upper()}:{wanted.gpus}"
    if wanted.image:
        resources["image_id"] = f"docker:{wanted.image}"
    task = {
        "name": _name(work),
        "resources": resources,
        "envs": _variables(),
        "secrets": dict.fromkeys(SECRETS),
        "setup": "pip install 'polysweep[s3]'\n",
        "run": shlex.join(wanted.words) + "\n",
    }
    given = " ".join(f"--secret {name}" for name in SECRETS)
    head = (
        f"# One worker of {work.reference}. For {wanted.number} of them:\n"
        f"#   for i in $(seq {wanted.number}); do sky jobs launch -y -d {given} FILE; done\n"
    )
    return head + _yaml({key: value for key, value in task.items() if value})


def _pbs(work: Work, wanted: TemplateOptions) -> str:
    gpus = f":ngpus={wanted.gpus}" if wanted.gpus else ""
    lines = [f"#PBS -N {_name(work)[:15]}", f"#PBS -l select=1:ncpus={max(1, 4 * wanted.gpus)}{gpus}"]
    if wanted.number > 1:
        lines.append(f"#PBS -J 1-{wanted.number}")
    if wanted.hours is not None:
        seconds = math.ceil(3600 * wanted.hours + _grace_s(work))
        lines.append(f"#PBS -l walltime={seconds // 3600:02}:{seconds // 60 % 60:02}:{seconds % 60:02}")
    if wanted.queue:
        lines.append(f"#PBS -q {wanted.queue}")
    lines += ["#PBS -j oe", "#PBS -r y"]
    is_folder = work.view.ledger.objects.shared_folder("") is not None
    where = "every node must see this folder" if is_folder else "credentials: ~/.aws"
    return "\n".join(
        [
            "#!/bin/bash",
            *lines,
            f"# {wanted.number} workers of {work.reference}: qsub FILE. The store: {where}.",
            f"# Exit code {RELEASED}: stopped with work left, so submit it again.",
            'cd "${PBS_O_WORKDIR:-.}" || exit 3',
            *(f"export {name}={shlex.quote(value)}" for name, value in _variables().items()),
            f'export PATH={shlex.quote(str(Path(sys.executable).parent))}:"$PATH"',
            f"exec {shlex.join(wanted.words)}",
            "",
        ]
    )


def _command(work: Work, wanted: TemplateOptions) -> str:
    return f"{shlex.join(wanted.words)}\n" * wanted.number


def _yaml(tree: Mapping[str, Any]) -> str:
    text: str = yaml.safe_dump(dict(tree), sort_keys=False, allow_unicode=True, width=10**6)
    return text


_KINDS: Mapping[str, tuple[Callable[[Work, TemplateOptions], str], tuple[str, ...]]] = {
    "k8s": (_kubernetes, ("image", "secret")),
    "kueue": (_kubernetes, ("image", "secret", "queue")),
    "skypilot": (_skypilot, ("image",)),
    "pbs": (_pbs, ("queue",)),
    "command": (_command, ()),
}
KINDS = tuple(_KINDS)
"""What templates there are."""
