"""The fidelity losses and their logit gradient as one Triton kernel; needs triton, so it is imported when used.

Program (i, k) of the grid computes rows i ROWS... of task k: their gradient columns, and their share of the loss. An
ordinal program walks over all partners in tiles, so memory is linear in B. No float is ever added atomically: the
program of a task that arrives last adds up the shares in a fixed order, so equal inputs give bitwise equal results.
"""

import functools

import torch
import triton
import triton.language as tl
from torch import Tensor

from blades_dist.config import LossConfig
from blades_dist.losses import formulas
from blades_dist.losses.reference import label_columns
from blades_dist.tasks import ABSENT, TaskSet

KINDS = {"coarse": 0, "categorical": 1, "fine": 2, "ordinal": 3}
FIELDS = 6  # of a task's row in the table
PARTNERS = 64  # rows that one step of a program's loops covers

_CATEGORICAL = tl.constexpr(KINDS["categorical"])
_FINE = tl.constexpr(KINDS["fine"])
_ORDINAL = tl.constexpr(KINDS["ordinal"])
_FIELDS = tl.constexpr(FIELDS)
_ABSENT = tl.constexpr(ABSENT)


def losses_and_gradient(
    logits: Tensor, labels: Tensor, levels: Tensor | None, first: int, tasks: TaskSet, config: LossConfig
) -> tuple[Tensor, Tensor]:
    """This rank's share of the K losses (K,) and its unweighted gradient (B, C), both fp32.

    ``logits`` (B, C) in fp32 or narrower with any strides. ``labels`` (N B, K - 1 + R), any integer type, are those
    of all ranks, of which this rank's begin at row ``first``. ``levels`` (ordinal tasks, N B) are all ranks' expected
    levels; None in a world of one, where the kernel computes them itself.
    """
    # Triton compiles a kernel anew for other strides and types, and another order of sums is other last bits.
    logits, labels = logits.contiguous(), labels.to(torch.int64).contiguous()
    rows, block = len(logits), 16 if len(logits) <= 16 else 32
    blocks = max(1, triton.cdiv(rows, block))
    gradient = torch.empty(rows, tasks.width, dtype=torch.float32, device=logits.device)
    losses, shares = (torch.empty(len(tasks), n, dtype=torch.float32, device=logits.device) for n in (1, blocks))
    # Launches of one stream run one after the other and leave the counters at zero, so they can share them.
    stream = torch.cuda.current_stream(logits.device).cuda_stream if logits.is_cuda else 0
    table, arrived = _workspace(tasks, logits.device, stream)
    widths = [len(task.classes) for task in tasks.tasks]
    narrow = [len(task.classes) for task in tasks.tasks if task.kind in ("ordinal", "fine")]
    known = logits if levels is None else levels  # never read when there are no levels
    with torch.cuda.device_of(logits):
        _kernel[(blocks, len(tasks))](
            logits,
            *logits.stride(),
            labels,
            *labels.stride(),
            known,
            *known.stride(),
            gradient,
            losses,
            shares,
            arrived,
            table,
            rows,
            len(labels),
            first,
            tasks.width,
            config.ranking_scale,
            GAMMA=float(config.gamma),
            GATHERED=levels is not None,
            ROWS=block,
            COLUMNS=triton.next_power_of_2(max(widths)),
            NARROW=triton.next_power_of_2(max(narrow, default=1)),
            PARTNERS=PARTNERS,
            enable_fp_fusion=True,
        )
    return losses[:, 0], gradient


@functools.lru_cache(maxsize=64)
def _workspace(tasks: TaskSet, device: torch.device, stream: int) -> tuple[Tensor, Tensor]:
    """What the kernel reads of each task (K, FIELDS), and a counter of arrived programs for each (K,)."""
    table, ordinal = [], 0
    for task, part in zip(tasks.tasks, label_columns(tasks), strict=True):
        columns = tasks.columns[task.name]
        table.append((KINDS[task.kind], columns.start, len(task.classes), part.start, part.stop - part.start, ordinal))
        ordinal += task.kind == "ordinal"
    counters = torch.zeros(len(tasks), dtype=torch.int32, device=device)
    return torch.tensor(table, dtype=torch.int32, device=device), counters


@triton.jit(do_not_specialize=["rows", "everyone", "first"])
def _kernel(
    logits: tl.tensor,
    logits_row: tl.tensor,
    logits_column: tl.tensor,
    labels: tl.tensor,
    labels_row: tl.tensor,
    labels_column: tl.tensor,
    levels: tl.tensor,
    levels_task: tl.tensor,
    levels_row: tl.tensor,
    gradient: tl.tensor,
    losses: tl.tensor,
    shares: tl.tensor,
    arrived: tl.tensor,
    table: tl.tensor,
    rows: tl.tensor,
    everyone: tl.tensor,
    first: tl.tensor,
    width: tl.tensor,
    scale: tl.tensor,
    GAMMA: tl.constexpr,
    GATHERED: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,  # at least the logit columns of any task
    NARROW: tl.constexpr,  # at least the logit columns of an ordinal task, and the label columns of any
    PARTNERS: tl.constexpr,
) -> None:
    block, blocks, task = tl.program_id(0), tl.num_programs(0), tl.program_id(1)
    table += task * _FIELDS
    kind, columns = tl.load(table), tl.load(table + 2)
    logits += tl.load(table + 1) * logits_column
    labels += tl.load(table + 3) * labels_column
    label_columns = tl.load(table + 4)
    levels += tl.load(table + 5) * levels_task

    row, column = block * ROWS + tl.arange(0, ROWS), tl.arange(0, COLUMNS)
    inside, used = row < rows, column < columns
    cells = inside[:, None] & used[None, :]
    z = tl.load(logits + row[:, None] * logits_row + column[None, :] * logits_column, mask=cells, other=0.0)
    z = z.to(tl.float32)
    own_labels = labels + (first + row) * labels_row
    label = tl.load(own_labels, mask=inside, other=0).to(tl.int32)
    present = inside & (label != _ABSENT)

    if kind == _ORDINAL:
        probability = formulas.softmax(z, used)
        level = formulas.expected(probability, column)
        items, slope, n = _pairs(
            level, label, present, first + row, logits, logits_row, logits_column, labels, labels_row,
            levels, levels_row, everyone, columns, scale, GATHERED, ROWS, NARROW, PARTNERS,
        )  # fmt: skip
        count = n * (n - 1) / 2
        # Each pair is met from both ends; the slope at one end is complete.
        share = tl.sum(tl.where(present, items, 0.0)) / 2
        dz = tl.where(present, slope, 0.0)[:, None] * probability * (1.0 + column[None, :] - level[:, None])
    else:
        count = _labelled(labels, labels_row, labels_column, everyone, label_columns, NARROW, PARTNERS)
        if kind == _FINE:
            targets = tl.load(own_labels[:, None] + column[None, :] * labels_column, mask=cells, other=0).to(tl.int32)
            cells_present = cells & (targets != _ABSENT)
            cell_items, cell_slope = formulas.fine(z, tl.where(cells_present, targets, 0).to(tl.float32))
            share = tl.sum(tl.where(cells_present, cell_items, 0.0))
            dz = tl.where(cells_present, cell_slope, 0.0)
        else:
            class_items, class_slope = formulas.classes(
                formulas.softmax(z, used), column[None, :] == label[:, None], columns, kind == _CATEGORICAL, GAMMA
            )
            share = tl.sum(tl.where(present, class_items, 0.0))
            dz = tl.where(present[:, None], class_slope, 0.0)

    weight = tl.where(count > 0, 1 / tl.maximum(count, 1.0), 0.0)
    first_column = tl.load(table + 1)
    tl.store(gradient + row[:, None] * width + first_column + column[None, :], dz * weight, mask=cells)
    if blocks == 1:
        tl.store(losses + task, share * weight)
    else:
        shares += task * blocks
        tl.store(shares + block, share * weight)
        # The share is written before the counter is raised, for all threads of the program.
        tl.debug_barrier()
        if tl.atomic_add(arrived + task, 1, sem="acq_rel", scope="gpu") == blocks - 1:
            total = 0.0
            for start in range(0, blocks, PARTNERS):
                part = start + tl.arange(0, PARTNERS)
                # .cg: past the first-level cache, which other programs' stores do not reach.
                total += tl.sum(tl.load(shares + part, mask=part < blocks, other=0.0, cache_modifier=".cg"))
            tl.store(losses + task, total)
            tl.store(arrived + task, 0)


@triton.jit
def _pairs(
    level: tl.tensor,
    label: tl.tensor,
    present: tl.tensor,
    number: tl.tensor,
    logits: tl.tensor,
    logits_row: tl.tensor,
    logits_column: tl.tensor,
    labels: tl.tensor,
    labels_row: tl.tensor,
    levels: tl.tensor,
    levels_row: tl.tensor,
    everyone: tl.tensor,
    columns: tl.tensor,
    scale: tl.tensor,
    GATHERED: tl.constexpr,
    ROWS: tl.constexpr,
    NARROW: tl.constexpr,
    PARTNERS: tl.constexpr,
) -> tuple[tl.tensor, tl.tensor, tl.tensor]:
    """Pair losses of rows with all partners and their slope at the rows' levels, both (ROWS,); labelled partners."""
    items = tl.zeros((ROWS,), tl.float32)
    slope = tl.zeros((ROWS,), tl.float32)
    labelled = tl.zeros((PARTNERS,), tl.float32)
    column = tl.arange(0, NARROW)
    used = column < columns
    for start in range(0, everyone, PARTNERS):
        partner = start + tl.arange(0, PARTNERS)
        inside = partner < everyone
        their_label = tl.load(labels + partner * labels_row, mask=inside, other=0).to(tl.int32)
        there = inside & (their_label != _ABSENT)
        if GATHERED:
            their_level = tl.load(levels + partner * levels_row, mask=inside, other=0.0)
        else:
            cells = inside[:, None] & used[None, :]
            at = logits + partner[:, None] * logits_row + column[None, :] * logits_column
            their_level = formulas.expected(
                formulas.softmax(tl.load(at, mask=cells, other=0.0).to(tl.float32), used), column
            )
        counted = present[:, None] & there[None, :] & (number[:, None] != partner[None, :])
        above, tie = label[:, None] > their_label[None, :], label[:, None] == their_label[None, :]
        target = tl.where(tie, 0.5, tl.where(above, 1.0, 0.0))
        pair_items, pair_slope = formulas.pair(level[:, None] - their_level[None, :], target, scale)
        items += tl.sum(tl.where(counted, pair_items, 0.0), 1)
        slope += tl.sum(tl.where(counted, pair_slope, 0.0), 1)
        labelled += tl.where(there, 1.0, 0.0)
    return items, slope, tl.sum(labelled)


@triton.jit
def _labelled(
    labels: tl.tensor,
    row_stride: tl.tensor,
    column_stride: tl.tensor,
    everyone: tl.tensor,
    columns: tl.tensor,
    NARROW: tl.constexpr,
    PARTNERS: tl.constexpr,
) -> tl.tensor:
    """How many labels of all rows are there."""
    found = tl.zeros((PARTNERS, NARROW), tl.float32)
    column = tl.arange(0, NARROW)
    for start in range(0, everyone, PARTNERS):
        row = start + tl.arange(0, PARTNERS)
        cells = (row < everyone)[:, None] & (column < columns)[None, :]
        at = labels + row[:, None] * row_stride + column[None, :] * column_stride
        found += tl.where(cells & (tl.load(at, mask=cells, other=0).to(tl.int32) != _ABSENT), 1.0, 0.0)
    return tl.sum(found)


# Triton decides at decoration whether its interpreter runs a kernel on the CPU (TRITON_INTERPRET=1).
INTERPRETED = not isinstance(_kernel, triton.runtime.JITFunction)
