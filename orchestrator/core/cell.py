"""Turn stage specs and a cell's config into the cell's chain of content-addressed stage instances. Pure.

The digest of a stage instance covers its target, its version, the config it reads and the digests of its
inputs. Two cells that agree on all of these share the instance, so it runs once:

    cell 1: model=a, seed=0    tokenizer 3f.. -> train 8c.. -> evaluate 51..
    cell 2: model=a, seed=1    tokenizer 3f.. -> train e0.. -> evaluate 9d..

Here ``tokenizer`` does not read ``seed``. Both chains therefore name the same instance, ``3f..``.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from orchestrator.core.commandspec import placeholders
from orchestrator.core.identity import canonical, stage_digest
from orchestrator.core.selector import Selector, Subject
from orchestrator.core.sweep import Input, StageInstance, Sweep
from orchestrator.core.tree import (
    MISSING,
    dotted_keys,
    pick,
    place,
    refuse_non_finite,
    scalar_text,
    without_key,
)
from orchestrator.errors import InfrastructureError, UserError, nearest
from orchestrator.stage import StageSpec


def slice_of(
    config: Mapping[str, Any],
    keys: Iterable[str],
    *,
    carve: Iterable[str] = (),
    what: str = "the stage reads",
) -> dict[str, Any]:
    """Return the part of a config that some dotted keys name.

    Args:
        config: the resolved tree.
        keys: dotted keys of values or sections.
        carve: keys to leave out although a section of `keys` contains them.
        what: the beginning of an error message.

    Raises:
        UserError: the config lacks one of `keys`.
    """
    part: dict[str, Any] = {}
    for key in sorted(keys, key=len):  # shorter keys first: a section, then its values
        value = pick(config, key)
        if value is MISSING:
            raise UserError(f"{what} the unknown key {key!r}", allowed=nearest(key, dotted_keys(config)))
        if pick(part, key) is MISSING:
            place(part, key, value)
    for key in carve:
        if pick(part, key) is not MISSING:
            part = without_key(part, key)
    return part


def reads_of(spec: StageSpec, config: Mapping[str, Any]) -> dict[str, Any]:
    """Return the slice of the config that a stage reads.

    A stage may read a section and use a key inside it (reads ``training``, uses ``training.devices``). The
    more specific key wins: it is removed from the slice, and so from the digest.

    Raises:
        UserError: the config lacks one of the keys.
    """
    carve = [key for key in spec.uses if any(key.startswith(f"{read}.") for read in spec.reads)]
    # The `each` variables are no config keys: their values come from the lists that `each` names.
    keys = [key for key in spec.reads if key not in spec.each]
    return slice_of(config, keys, carve=carve)


def former_node(former: StageSpec, node: StageInstance) -> StageInstance | None:
    """Return the instance that a stage was under an earlier version of its spec, with the same inputs.

    Its digest leads to the product of the earlier version, which today's version may start from.

    Args:
        former: the earlier spec. Only keys that today's stage reads too can be resolved.
        node: today's stage instance.

    Returns:
        The earlier instance, or None if the earlier version read a key that today's stage does not read.
    """
    try:
        reads = reads_of(former, node.reads)
    except UserError:
        return None
    given = {name: node.reads[name] for name in former.each if name in node.reads}
    digest = stage_digest(_target(former), former.version, {**hashed_of(former, reads), **given}, node.inputs)
    return StageInstance(
        stage=node.stage, label=node.label, digest=digest, reads={**reads, **given}, inputs=node.inputs
    )


def hashed_of(spec: StageSpec, reads: dict[str, Any]) -> dict[str, Any]:
    """Return the part of a stage's slice that enters its digest: all but keys at their neutral value.

    A new config field whose neutral value is the old behaviour therefore changes no existing digest.
    """
    for key, neutral in spec.neutral.items():
        value = pick(reads, key)
        # Compare canonical text, because in Python 1 == 1.0 == True.
        if value is not MISSING and canonical([value]) == canonical([neutral]):
            reads = without_key(reads, key)
    return reads


def uses_of(spec: StageSpec, config: Mapping[str, Any]) -> dict[str, Any]:
    """Return the slice of the config that a stage uses: passed to the stage, but never part of its identity.

    Raises:
        UserError: the config lacks one of the keys.
    """
    return slice_of(config, spec.uses, what="the stage uses")


class Chains:
    """Builder of the chains of a sweep's cells, which keeps each stage instance once.

    Args:
        specs: stage name to spec, in the order of the sweep file.
        where: the sweep file, for messages.

    Attributes:
        specs: stage name to spec.
        nodes: digest to stage instance, of all chains built so far.
        skips: stage name to the selector of the cells that skip the stage.

    Raises:
        UserError: the `after` keys form a cycle, or a stage both reads and uses a key.
    """

    def __init__(self, specs: Mapping[str, StageSpec], *, where: str = "") -> None:
        self.specs, self.nodes = specs, dict[str, StageInstance]()
        self._where = where
        self._order = _topological(specs, where)
        self.skips = {name: Selector.parse(spec.skip) for name, spec in specs.items() if spec.skip}
        # Neutral keys that no config had yet. Each chain removes those it finds; see `check_neutral`.
        self._neutral = {(name, key) for name, spec in specs.items() for key in spec.neutral}
        self._asked = {name: placeholders(spec) for name, spec in specs.items()}
        for name, spec in specs.items():
            if both := set(spec.reads) & set(spec.uses):
                raise UserError(f"stage {name!r} both reads and uses {min(both)!r}", where=where)

    def chain(self, subject: Subject) -> tuple[str, ...]:
        """Return the digests of a cell's stages, inputs first, and add new instances to `nodes`.

        Args:
            subject: the cell's axes, columns and config.

        Raises:
            UserError: a key is unknown, a value cannot be hashed, or the cell skips all stages.
        """
        refuse_non_finite(subject.config, where=_named(subject))
        mine: dict[str, list[StageInstance]] = {}
        for name in self._order:
            skip = self.skips.get(name)
            if skip is None or not skip.matches(subject):
                mine[name] = self._instances(name, subject, mine)
        chain = tuple(dict.fromkeys(node.digest for nodes in mine.values() for node in nodes))
        if not chain:
            raise UserError("every stage of a cell is skipped", where=_named(subject), fix="exclude the cell")
        return chain

    def _instances(
        self, name: str, subject: Subject, mine: Mapping[str, list[StageInstance]]
    ) -> list[StageInstance]:
        spec, config = self.specs[name], subject.config
        try:
            reads = reads_of(spec, config)
            # resolved here so that errors appear now, not in a worker
            uses = uses_of(spec, config) if spec.uses else {}
            lists = [_each_values(config, key) for key in spec.each.values()]
        except UserError as error:
            what = error.what.replace("the stage", f"stage {name!r}", 1)
            raise UserError(what, where=self._where, allowed=error.allowed, fix=error.fix) from None
        self._neutral -= {(name, key) for key in spec.neutral if pick(reads, key) is not MISSING}
        hashed = hashed_of(spec, reads)
        where = f"stage {name!r}, {_named(subject)}"
        nodes = []
        for values in itertools.product(*lists):
            given = dict(zip(spec.each, values, strict=True))
            label = ".".join(map(scalar_text, values))
            inputs = self._inputs(name, label, mine)
            digest = stage_digest(_target(spec), spec.version, {**hashed, **given}, inputs, where=where)
            node = self.nodes.get(digest)
            if node is None:
                node = StageInstance(
                    stage=name, label=label, digest=digest, reads={**reads, **given}, inputs=inputs
                )
                self.nodes[digest] = node
            # Equal digests mean equal work: two names for it would leave open which stage owns the product.
            if node.stage != name:
                raise UserError(f"stages {node.stage!r} and {name!r} are one and the same", where=where)
            if self._asked[name]:
                self._check_command(node, uses, where)
            nodes.append(node)
        return nodes

    def _check_command(self, node: StageInstance, uses: Mapping[str, Any], where: str) -> None:
        """Refuse a command with a placeholder that a worker could not fill in for this instance."""
        slices = {"config": node.reads, "uses": uses}
        inputs = [".".join(filter(None, ("inputs", item.stage, item.label))) for item in node.inputs]
        for asked in self._asked[node.stage]:
            root, _, key = asked.partition(".")
            if root in slices:
                value = pick(slices[root], key)
                is_known = value is not MISSING and not isinstance(value, Mapping)
            else:
                is_known = root != "inputs" or asked in inputs
            if not is_known:
                known = [f"{name}.{key}" for name, tree in slices.items() for key in _value_keys(tree)]
                raise UserError(
                    f"the command of stage {node.stage!r} asks for {{{asked}}}, no single value here",
                    where=where,
                    allowed=nearest(asked, [*known, *inputs]),
                )

    def _inputs(self, name: str, label: str, mine: Mapping[str, list[StageInstance]]) -> tuple[Input, ...]:
        spec = self.specs[name]
        return tuple(
            Input(node.stage, node.label, node.digest)
            for other in spec.after
            for node in mine.get(other, ())
            # Stages with the same `each` pair up label by label: evaluate[en] takes prepare[en] alone.
            # Any other stage takes all instances of its inputs.
            if not (spec.each and spec.each == self.specs[other].each) or node.label == label
        )

    def check_neutral(self, config: Mapping[str, Any]) -> None:
        """Refuse a `neutral` key that no cell has. Call this once all chains are built.

        A misspelt neutral key would otherwise have no effect, and nobody would notice.

        Args:
            config: the config of any cell, for suggestions of the right name.

        Raises:
            UserError: a stage of the user's names such a key; the message names both.
        """
        ran = {node.stage for node in self.nodes.values()}
        for name, key in sorted(self._neutral):
            is_own = self.specs[name].name is None  # a built-in stage also serves configs without the key
            if is_own and name in ran:
                raise UserError(
                    f"stages.{name}.neutral names the unknown key {key!r}",
                    where=self._where,
                    allowed=nearest(key, dotted_keys(config)),
                )


def check_digests(sweep: Sweep, title: str) -> None:
    """Refuse a sealed sweep in which a stage's digest is not the digest of what the stage would run.

    Products are found by digest. With a forged digest, a stage could pass its product off as another stage's.

    Args:
        sweep: the sealed sweep.
        title: the name of the revision, for the message.

    Raises:
        InfrastructureError: there is such a stage.
    """
    if problem := _misnamed(sweep):
        raise InfrastructureError(f"{title} cannot be trusted: {problem}")


def _misnamed(sweep: Sweep) -> str:
    for digest, node in sweep.nodes.items():
        spec = sweep.specs.get(node.stage)
        if spec is None:
            return f"there is no stage {node.stage!r}"
        reads = {key: value for key, value in node.reads.items() if key not in spec.each}
        given = {key: value for key, value in node.reads.items() if key in spec.each}
        hashed = hashed_of(spec, reads)
        try:
            found = stage_digest(_target(spec), spec.version, {**hashed, **given}, node.inputs)
        except UserError as error:
            return f"{node.name}: {error.what}"
        if not digest == node.digest == found:
            return f"{node.name} is not what its digest {digest[:12]} names"
    return ""


def _value_keys(tree: Mapping[str, Any]) -> list[str]:
    return [key for key in dotted_keys(tree) if not isinstance(pick(tree, key), Mapping)]


def _each_values(config: Mapping[str, Any], key: str) -> Sequence[Any]:
    values = pick(config, key)
    if values is MISSING:
        raise UserError(
            f"the stage has an instance each for the unknown key {key!r}",
            allowed=nearest(key, dotted_keys(config)),
        )
    if not isinstance(values, list | tuple):
        raise UserError(f"the stage has an instance each for {key!r}, which is no list: {values!r}")
    texts = [scalar_text(value) for value in values]
    if len(set(texts)) < len(texts):
        twice = next(text for text in texts if texts.count(text) > 1)
        raise UserError(f"the stage has an instance each for {key!r}, which lists {twice!r} twice")
    return values


def _topological(specs: Mapping[str, StageSpec], where: str) -> list[str]:
    """Return the stage names ordered so that inputs come first, otherwise in the order of the file."""
    order: list[str] = []
    left = list(specs)
    while left:
        ready = next((name for name in left if all(other in order for other in specs[name].after)), None)
        if ready is None:
            raise UserError(f"stages come after one another in a circle: {', '.join(left)}", where=where)
        order.append(ready)
        left.remove(ready)
    return order


def _target(spec: StageSpec) -> str:
    if spec.name:
        return f"polysweep:{spec.name}"
    # A shell interprets the command, so the same text is other work; the mark makes the digest another.
    return spec.run or f"{'shell: ' if spec.shell else ''}{spec.command}"


def _named(subject: Subject) -> str:
    return " ".join(["cell", *(f"{axis}={label}" for axis, label in subject.axes.items())])
