"""The pretext tasks: one for every EXIF tag of ``tags.EXIF_TAGS``, and the two manipulation tasks.

Order, widths and wording follow the paper (BLADES, ICCV 2025, arXiv 2507.22824) and its released code, so that its
checkpoints and loss values stay comparable. Adding an EXIF tag is one more row of ``tags.EXIF_TAGS``.
"""

from dataclasses import dataclass
from typing import Literal

from blades_dist.tags import EXIF_TAGS, ExifTag

TaskKind = Literal["ordinal", "categorical", "coarse", "fine"]

REGIONS = ("mouth", "eye", "nose")


@dataclass(frozen=True)
class Task:
    """One pretext task.

    ``classes`` are the names of its logit columns, ``template`` turns one of them into its text prompt, and
    ``tag`` is the EXIF column of a record that holds its label (None for the two manipulation tasks, whose
    labels are made on the device).
    """

    name: str
    kind: TaskKind
    classes: tuple[str, ...]
    template: str
    tag: str | None = None
    optional: bool = False

    @property
    def prompts(self) -> tuple[str, ...]:
        return tuple(self.template.format(name) for name in self.classes)


def _task_of(tag: ExifTag) -> Task:
    return Task(tag.name, tag.kind, tag.classes, tag.prompt, tag=tag.name, optional=tag.optional)


TASKS: tuple[Task, ...] = (
    *(_task_of(tag) for tag in EXIF_TAGS),
    Task("face_coarse", "coarse", ("photographic", "manipulated"), "a photo of a {} face"),
    Task("face_fine", "fine", REGIONS, "a photo of a face with a manipulated {} region"),
)

# Every tag that a record stores a label for, whether or not a run switches its task on.
TAGS: tuple[str, ...] = tuple(task.tag for task in TASKS if task.tag is not None)
ORDINAL_TAGS: tuple[str, ...] = tuple(t.tag for t in TASKS if t.kind == "ordinal" and t.tag is not None)
CATEGORICAL_TAGS: tuple[str, ...] = tuple(t.tag for t in TASKS if t.kind == "categorical" and t.tag is not None)
ABSENT = -1


@dataclass(frozen=True)
class TaskSet:
    """The tasks that a run trains, with the logit columns that each of them reads."""

    tasks: tuple[Task, ...]

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(task.name for task in self.tasks)

    @property
    def columns(self) -> dict[str, slice]:
        """Task name to its slice of the C logit columns."""
        columns, start = {}, 0
        for task in self.tasks:
            columns[task.name] = slice(start, start + len(task.classes))
            start += len(task.classes)
        return columns

    @property
    def prompts(self) -> tuple[str, ...]:
        """The C prompts in column order."""
        return tuple(prompt for task in self.tasks for prompt in task.prompts)

    @property
    def width(self) -> int:
        """C, the number of logit columns."""
        return sum(len(task.classes) for task in self.tasks)

    @property
    def task_of_column(self) -> tuple[int, ...]:
        """For every logit column the index of the task that reads it; what turns λ (K) into column scales (C)."""
        return tuple(i for i, task in enumerate(self.tasks) for _ in task.classes)

    @property
    def proxy(self) -> int:
        """Index of the coarse manipulation task, the outer objective of the bi-level loop."""
        return self.names.index("face_coarse")

    def __len__(self) -> int:
        return len(self.tasks)


def vocabulary(tag: str) -> tuple[str, ...]:
    """Class names of a tag's labels, in label order.

    Raises:
        KeyError: for a tag that the table does not have.
    """
    for task in TASKS:
        if task.tag == tag:
            return task.classes
    raise KeyError(f"unknown EXIF tag {tag!r}; the table has {', '.join(TAGS)}")


def task_set(flash: bool = False) -> TaskSet:
    """The paper's eleven tasks (C = 50), or twelve with ``flash`` (C = 52)."""
    return TaskSet(tuple(task for task in TASKS if flash or not task.optional))
