"""The content of ``report.json`` as types, a class for each section and for each entry of one.

The files hold the fields in this order. A number that cannot be computed is None or absent. Accuracies and
their intervals are shares from 0 to 1, gains are in percentage points, and ``low`` and ``high`` are the ends
of 95 % intervals.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import msgspec

from orchestrator.reporting import HeldFacts, LaunchFacts, RetryFacts


class _Section(msgspec.Struct, frozen=True):
    pass


class ExpectedCell(NamedTuple):
    """A cell that should have rows; `seed` is None if any seed will do."""

    model: str
    task: str
    languages: Any
    cell: str | None = None
    seed: Any = None


class SweepSection(_Section, frozen=True):
    """The sweep and its revision; None for a table from elsewhere."""

    sweep: str | None = None
    revision: int | None = None
    sealed: bool | None = None
    description: str = ""
    stages: tuple[str, ...] | None = None
    made_at: str | None = None
    notes: tuple[str, ...] = ()


class Swept(_Section, frozen=True):
    """What was run, from first to last."""

    models: list[str]
    tasks: list[str]
    mixtures: list[str]
    eval_languages: list[str]


class LackingCell(_Section, frozen=True):
    """A cell that is not done, or that lacks rows; `name` is its mixture with what else distinguishes it."""

    cell: str
    model: str
    task: str
    name: str
    state: str
    cause: str
    reason: str


class LackingGroup(_Section, frozen=True):
    """Such cells of equal state, cause, model and task."""

    state: str
    cause: str
    model: str
    task: str
    num_cells: int
    names: list[str]
    reasons: list[str]


class StatusSection(_Section, frozen=True):
    """How many cells are in each state, and which are lacking."""

    num_cells: int
    num_done: int
    num_rows: int
    states: dict[str, int]
    groups: list[LackingGroup]
    cells: list[LackingCell]


class MissingRows(_Section, frozen=True):
    """An expected cell without rows in some evaluation languages."""

    cell: str | None
    model: str
    task: str
    mixture: str
    languages: list[str]
    seed: str | None
    eval_languages: list[str]


class WinRate(_Section, frozen=True):
    """Table 2: how often en+x beats en in a setting."""

    wins: int
    total: int
    rate: float | None
    low: float | None
    high: float | None


class Coefficient(_Section, frozen=True):
    """A coefficient of Table 3."""

    value: float | None = None
    low: float | None = None
    high: float | None = None


class Regression(_Section, frozen=True):
    """Table 3, with R2 on held-out rows; `dropped` maps regressors to why they were left out."""

    coefficients: dict[str, Coefficient]
    r2: float | None
    r2_low: float | None
    r2_high: float | None
    num_rows: int
    dropped: dict[str, str]
    reason: str | None


class SizeAccuracy(_Section, frozen=True):
    """Figure 2: accuracy by number of training languages."""

    model: str
    task: str
    group: str
    num_languages: int
    num_correct: int
    num_items: int
    accuracy: float
    low: float
    high: float


class MedianGain(_Section, frozen=True):
    """Figure 3: the median gain from en to en+x, over `num_cells` comparisons."""

    median_points: float | None
    low: float | None
    high: float | None
    num_cells: int


class TransferPoint(_Section, frozen=True):
    """Figures 4 and 9: direct exposure to a language against zero-shot transfer."""

    model: str
    task: str
    language: str
    num_languages: int
    direct: float
    zero_shot: float
    p_value: float
    outcome: str


class TrainingGain(_Section, frozen=True):
    """Figure 7: the change from the pretrained model to a mixture."""

    model: str
    task: str
    mixture: str
    eval_language: str
    delta_points: float


class LanguageAccuracy(_Section, frozen=True):
    """Figure 8: accuracy in an evaluation language, as the mean and values of all mixtures of a size."""

    model: str
    task: str
    eval_language: str
    num_languages: int
    mean: float
    values: list[float]


class BaselineAccuracy(_Section, frozen=True):
    """Accuracy of a pretrained model."""

    model: str
    task: str
    eval_language: str
    num_correct: int
    num_items: int
    accuracy: float
    low: float
    high: float


class PublishedNumber(_Section, frozen=True):
    """A published number beside ours, and the reason if they are not comparable."""

    name: str
    unit: str
    published: float
    published_low: float | None
    published_high: float | None
    decimals: int
    ours: float | None
    ours_low: float | None
    ours_high: float | None
    verdict: str
    reason: str | None


class NumbersSection(_Section, frozen=True):
    """Every number of the study's tables and figures.

    `table2` is by setting; `fig3` is by task and setting.
    """

    num_rows: int
    num_cells: int
    missing: list[MissingRows]
    table2: dict[str, WinRate]
    table3: Regression
    fig2: list[SizeAccuracy]
    fig3: dict[str, dict[str, MedianGain]]
    fig4: list[TransferPoint]
    fig7: list[TrainingGain]
    fig8: list[LanguageAccuracy]
    baselines: list[BaselineAccuracy]
    verdicts: list[PublishedNumber]

    @property
    def models(self) -> list[str]:
        """The models of all figures, so that each has the same colour and marker in all of them."""
        entries: tuple[Any, ...] = (*self.fig2, *self.fig4, *self.fig7, *self.fig8)
        return sorted({entry.model for entry in entries})


class UsedValue(_Section, frozen=True):
    """A value of a setting, and how many cells have it."""

    value: Any
    num_cells: int


class LedgerEntry(_Section, frozen=True):
    """A setting or a choice: what we or the paper take, and the values in the cells if they are known."""

    what: str
    key: str
    default: Any
    why: str
    values: list[UsedValue] | None
    differs: bool | None


class LedgerSection(_Section, frozen=True):
    """The deviation ledger; `known` is whether the configs of the cells are."""

    known: bool
    ours: list[LedgerEntry]
    differs: list[LedgerEntry]


class ModelHours(_Section, frozen=True):
    """Training hours times devices of a model, and its training tokens."""

    model: str
    hours: float
    num_cells: int
    num_tokens: int


class GpuHours(_Section, frozen=True):
    """Training hours times devices; `total` is None if no row has a training time."""

    total: float | None
    num_cells: int
    devices_known: bool
    devices: list[str]
    by_model: list[ModelHours]


class CodeCells(_Section, frozen=True):
    """A version of the code, and how many cells it made."""

    code: str
    num_cells: int


class Provenance(_Section, frozen=True):
    """Which code, revisions, launches and machines made the results."""

    codes: list[CodeCells]
    revisions: list[str]
    launches: Sequence[LaunchFacts]
    hosts: Sequence[str]


class Report(_Section, frozen=True):
    """The whole report."""

    sweep: SweepSection
    swept: Swept
    status: StatusSection
    numbers: NumbersSection
    ledger: LedgerSection
    retries: Sequence[RetryFacts]
    gpu_hours: GpuHours
    held: Sequence[HeldFacts]
    provenance: Provenance

    def to_json(self) -> bytes:
        """Return the content of ``report.json``, in which the numbers stand beside the other sections."""
        tree: dict[str, Any] = {}
        for name, section in msgspec.structs.asdict(self).items():
            tree |= msgspec.structs.asdict(section) if name == "numbers" else {name: section}
        return msgspec.json.format(msgspec.json.encode(tree), indent=1) + b"\n"
